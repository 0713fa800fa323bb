// Output that reaches memory in whole cache lines.
#pragma once

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

// Pieces of a kernel's output. Where stores bypass the caches, pieces at neighbouring addresses are collected here
// first: a line that is streamed in two parts, or in part streamed and in part stored, costs several times as much as a
// whole one.
class LineWriter {
 public:
  static constexpr int64_t kMaxPiece = 2048;

  explicit LineWriter(Stores stores) : is_streaming_(stores == Stores::kStreaming) {}
  LineWriter(const LineWriter&) = delete;
  ~LineWriter() {
    flush();
    finish(is_streaming_ ? Stores::kStreaming : Stores::kOrdinary);
  }

  // Where to put the `num_bytes` <= kMaxPiece that belong at `to`, before the next call.
  char* place(char* to, int64_t num_bytes) {
    if (!is_streaming_) return to;
    if (to != to_ + end_) {
      flush();
      start(to);
    } else if (end_ + num_bytes > kCapacity) {
      write_lines();
    }
    char* result = lines_ + end_;
    end_ += num_bytes;
    return result;
  }

  // True where the piece is whole lines, and the caller shall stream them to `to` itself.
  bool is_streamed_by_caller(char* to, int64_t num_bytes) {
    if (!is_streaming_ || ((reinterpret_cast<intptr_t>(to) | num_bytes) & (kLine - 1)) != 0) return false;
    flush();
    start(to + num_bytes);
    return true;
  }

  void copy_piece(char* to, const char* from, int64_t num_bytes) {
    if (!is_streaming_) {
      copy(to, from, num_bytes, Stores::kOrdinary);
      return;
    }
    if (to != to_ + end_) {
      flush();
      start(to);
    }
    if (end_ % kLine == 0) {
      write_lines();
      const int64_t whole = num_bytes & -kLine;
      stream_lines(to, from, whole);
      if (whole > 0) start(to += whole);
      from += whole;
      num_bytes -= whole;
    }
    for (int64_t length; num_bytes > 0; to += length, from += length, num_bytes -= length) {
      length = num_bytes < kMaxPiece ? num_bytes : kMaxPiece;
      copy(place(to, length), from, length, Stores::kOrdinary);
    }
  }

  // Writes what was collected: before anyone else writes there.
  void flush() {
    write_lines();
    if (end_ > begin_) std::memcpy(to_ + begin_, lines_ + begin_, end_ - begin_);
    begin_ = end_;
  }

 private:
  static constexpr int64_t kLine = 64, kCapacity = 2 * kMaxPiece;

  static void stream_lines(char* to, const char* from, int64_t num_bytes) {
    constexpr int64_t kWidth = sizeof(Bytes);
    for (int64_t i = 0; i < num_bytes; i += kLine) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kLine; j += kWidth) stream(to + i + j, load(from + i + j));
    }
  }

  void start(char* to) {
    begin_ = end_ = reinterpret_cast<intptr_t>(to) & (kLine - 1);
    to_ = to - begin_;
  }

  // Writes all but an incomplete last line, which moves to the front.
  void write_lines() {
    const int64_t whole = end_ & -kLine;
    if (whole == 0) return;
    const int64_t head = (begin_ + kLine - 1) & -kLine;
    std::memcpy(to_ + begin_, lines_ + begin_, head - begin_);
    stream_lines(to_ + head, lines_ + head, whole - head);
    std::memcpy(lines_, lines_ + whole, kLine);
    to_ += whole;
    end_ -= whole;
    begin_ = 0;
  }

  const bool is_streaming_;
  char* to_ = nullptr;  // where lines_ begins; of the bytes [begin_, end_) of lines_
  int64_t begin_ = 0, end_ = 0;
  alignas(kLine) char lines_[kCapacity + kLine];
};

}  // namespace
}  // namespace multikv::cpu
