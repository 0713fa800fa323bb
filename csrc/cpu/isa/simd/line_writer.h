// A buffer that turns small pieces of output into streaming stores of whole cache lines.
#pragma once

#include "cpu/isa/simd/copy.h"

namespace multikv::cpu {
namespace {

// Writes a kernel's output piece by piece. With ordinary stores, a piece is written to its address at once. With
// streaming stores, consecutive pieces are collected in a buffer, and whole cache lines of it are streamed. A line that
// is streamed in two parts, or partly streamed and partly stored, costs several times as much as a whole line.
//
//   output   to_            to_ + begin_         to_ + end_        to_ and lines_ are aligned to a cache line
//            |              |#### collected #####|
//   buffer   lines_         lines_ + begin_      lines_ + end_
class LineWriter {
 public:
  static constexpr int64_t kMaxPiece = 2048;

  explicit LineWriter(Stores stores) : is_streaming_(stores == Stores::kStreaming) {}
  LineWriter(const LineWriter&) = delete;
  ~LineWriter() {
    flush();
    finish(is_streaming_ ? Stores::kStreaming : Stores::kOrdinary);
  }

  // Returns where the caller writes a piece of num_bytes <= kMaxPiece bytes whose address in the output is `to`. The
  // caller writes the piece before it calls the LineWriter again.
  char* buffer_for(char* to, int64_t num_bytes) {
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

  // Returns true if stores are streaming and the piece is whole cache lines. Then the caller streams the piece to `to`
  // itself, before it calls the LineWriter again.
  bool leaves_to_caller(char* to, int64_t num_bytes) {
    if (!is_streaming_ || !are_whole_cache_lines(reinterpret_cast<intptr_t>(to) | num_bytes)) return false;
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
    if (are_whole_cache_lines(end_)) {
      // `to` is aligned to a cache line, so the whole lines of the piece are streamed without the buffer.
      write_lines();
      const int64_t whole = num_bytes & -kCacheLine;
      stream_lines(to, from, whole);
      if (whole > 0) start(to += whole);
      from += whole;
      num_bytes -= whole;
    }
    for (int64_t length; num_bytes > 0; to += length, from += length, num_bytes -= length) {
      length = num_bytes < kMaxPiece ? num_bytes : kMaxPiece;
      copy(buffer_for(to, length), from, length, Stores::kOrdinary);
    }
  }

  // Writes everything that has been collected. The caller must call flush() before other code writes to the same cache
  // lines.
  void flush() {
    if (end_ > begin_) write_all();
  }

 private:
  static constexpr int64_t kCapacity = 2 * kMaxPiece;

  void write_all() {
    write_lines();
    if (end_ > begin_) std::memcpy(to_ + begin_, lines_ + begin_, end_ - begin_);
    begin_ = end_;
  }

  static void stream_lines(char* to, const char* from, int64_t num_bytes) {
    constexpr int64_t kWidth = sizeof(Bytes);
    for (int64_t i = 0; i < num_bytes; i += kCacheLine) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kCacheLine; j += kWidth) stream(to + i + j, load(from + i + j));
    }
  }

  void start(char* to) {
    begin_ = end_ = reinterpret_cast<intptr_t>(to) & (kCacheLine - 1);
    to_ = to - begin_;
  }

  // Writes the complete cache lines of the buffer, and moves an incomplete last line to its front. An incomplete first
  // line, which begins at begin_ > 0, is written with ordinary stores.
  void write_lines() {
    const int64_t whole = end_ & -kCacheLine;
    if (whole == 0) return;
    const int64_t head = (begin_ + kCacheLine - 1) & -kCacheLine;
    std::memcpy(to_ + begin_, lines_ + begin_, head - begin_);
    stream_lines(to_ + head, lines_ + head, whole - head);
    std::memcpy(lines_, lines_ + whole, kCacheLine);
    to_ += whole;
    end_ -= whole;
    begin_ = 0;
  }

  const bool is_streaming_;
  char* to_ = nullptr;
  int64_t begin_ = 0, end_ = 0;
  alignas(kCacheLine) char lines_[kCapacity + kCacheLine];
};

}  // namespace
}  // namespace multikv::cpu
