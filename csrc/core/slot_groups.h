// The slots of tokens in several groups of caches, and how context parallelism spreads tokens over ranks.
#pragma once

#include "core/divisor.h"
#include "core/indices.h"
#include "core/slots.h"

namespace multikv {

// Context parallelism spreads the positions of a sequence over `world` ranks: `interleave` neighbouring positions go to
// one rank, the next ones to the next rank, and so on. A column of the block table covers block_size * world positions.
// Each rank holds block_size of them, in a block of its own. Example: world = 2, interleave = 2, block_size = 4:
//
//   position   0  1  2  3  4  5  6  7 | 8  9 ..
//   rank       0  0  1  1  0  0  1  1 | 0  0
//   column     0  0  0  0  0  0  0  0 | 1  1
//   offset     0  1  0  1  2  3  2  3 | 0  1
//
// Without context parallelism, world is 1.
struct ContextRanks {
  Divisor world, interleave;
  int64_t rank;  // the rank of the caller
};

// Consecutive positions of one column and one rank.
struct PositionRun {
  int64_t column;  // of the block table
  int64_t offset;  // of the first position in its block; -1 if the positions belong to another rank
  int64_t length;
};

// `count` tokens from `token` on, whose positions form a PositionRun. A token with a negative position is a run of its
// own, whose offset is -1.
struct TokenPositions {
  int64_t token, count;
  int64_t column, offset;
};

// Caches that share a block table and a block size.
struct SlotGroup {
  Indices block_table;  // [num_rows, num_columns]
  int64_t num_columns;
  void* slots;  // [tokens], int32 or int64; written
  Divisor block_size;
  Divisor column_size;    // positions of a column: block_size * world
  BlockOffset last_slot;  // the largest slot that fits the dtype of `slots`

  // Returns the longest run that begins with a position, which must not be negative. divide(x, divisor) is the
  // backend's division.
  template <class Divide>
  constexpr PositionRun run_at(int64_t position, const ContextRanks& ranks, Divide divide) const {
    const auto column = static_cast<int64_t>(divide(static_cast<uint64_t>(position), column_size));
    const auto in_column = static_cast<int64_t>(static_cast<uint64_t>(position) - column * column_size.value);
    if (ranks.world.value == 1) return {column, in_column, block_size.signed_value() - in_column};
    const int64_t interleave = ranks.interleave.signed_value();
    const auto piece = static_cast<int64_t>(divide(static_cast<uint64_t>(in_column), ranks.interleave));
    const auto round = static_cast<int64_t>(divide(static_cast<uint64_t>(piece), ranks.world));
    const int64_t rank = piece - round * ranks.world.signed_value(), in_piece = in_column - piece * interleave;
    return {column, rank == ranks.rank ? round * interleave + in_piece : -1, interleave - in_piece};
  }

  // Calls visit(TokenPositions) for the tokens [begin, end), which belong to one sequence.
  template <class Divide, class Visit>
  constexpr void for_each_run(const Indices& positions, int64_t begin, int64_t end, const ContextRanks& ranks,
                              Divide divide, const Visit& visit) const {
    for (int64_t token = begin; token < end;) {
      const int64_t position = positions.at(token);
      if (position < 0) {
        visit(TokenPositions{token++, 1, 0, -1});
        continue;
      }
      const PositionRun run = run_at(position, ranks, divide);
      const int64_t left = run.length < end - token ? run.length : end - token;
      int64_t count = 1;
      while (count < left && positions.at(token + count) == position + count) ++count;
      visit(TokenPositions{token, count, run.column, run.offset});
      token += count;
    }
  }

  // Whether at.block is not negative, and its slots up to at.offset fit the dtype of `slots`.
  constexpr bool has_slot(BlockOffset at) const {
    return at.block >= 0 &&
           (at.block < last_slot.block || (at.block == last_slot.block && at.offset <= last_slot.offset));
  }
};

}  // namespace multikv
