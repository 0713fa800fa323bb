#include "emulation/execution.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <unordered_map>
#include <vector>

// The bytes of all __shared__ variables. The linker defines these two names.
extern "C" char __start_multikv_lds[] __attribute__((visibility("hidden"), weak));
extern "C" char __stop_multikv_lds[] __attribute__((visibility("hidden"), weak));

// Saves the callee's registers on the stack, stores the stack pointer, and continues on another stack.
extern "C" void multikv_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden multikv_switch_stack
.globl multikv_switch_stack
.type multikv_switch_stack, @function
multikv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.size multikv_switch_stack, . - multikv_switch_stack
)");

namespace multikv::emulation {

Lane lane;
unsigned wave_size = 64;

namespace {

constexpr unsigned kWarp = 32, kMaxLanes = 1024;
constexpr size_t kStackBytes = 256 << 10, kPage = 4096, kMaxDynamicBytes = 64 << 10;

// A generator that is fast: xorshift.
uint64_t random_state = 0x9e3779b97f4a7c15;
uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}
unsigned random_below(unsigned count) { return static_cast<unsigned>((next_random() >> 32) * count >> 32); }

// Shared memory, which is filled with random bytes before each thread block. To fill only what a kernel has written,
// the pages are remembered in which its thread blocks have written.
class SharedMemory {
 public:
  SharedMemory() : random_(size() + kMaxDynamicBytes) {
    for (char& byte : random_) byte = static_cast<char>(next_random());
    std::memcpy(__start_multikv_lds, random_.data(), size());
  }

  void* dynamic() { return dynamic_; }

  // Fills what the kernel uses.
  void fill(const void* kernel, size_t dynamic_bytes) {
    if (dynamic_bytes > kMaxDynamicBytes) throw std::runtime_error("emulation: over 64 KiB of shared memory");
    std::memcpy(dynamic_, random_.data() + size(), dynamic_bytes);
    for (const size_t page : written_[kernel]) restore(page);
  }
  // Remembers the pages in which the kernel has written.
  void note_written(const void* kernel) {
    std::vector<size_t>& pages = written_[kernel];
    for (size_t page = 0; page < size(); page += kPage) {
      if (std::memcmp(__start_multikv_lds + page, random_.data() + page, bytes_of(page)) == 0) continue;
      if (std::find(pages.begin(), pages.end(), page) == pages.end()) pages.push_back(page);
      restore(page);
    }
  }

 private:
  static size_t size() { return __stop_multikv_lds - __start_multikv_lds; }
  static size_t bytes_of(size_t page) { return std::min(kPage, size() - page); }
  void restore(size_t page) { std::memcpy(__start_multikv_lds + page, random_.data() + page, bytes_of(page)); }

  std::vector<char> random_;
  std::unordered_map<const void*, std::vector<size_t>> written_;
  alignas(128) char dynamic_[kMaxDynamicBytes];
};
SharedMemory& shared_memory() {
  static SharedMemory memory;
  return memory;
}

enum class State : uint8_t { kReady, kBallot, kShuffle, kBlock, kEnded };

struct Fiber {
  void* stack_pointer;
  State state;
  const void* place;  // where it waits
  uint64_t value;     // what it gives to the others, and then the result
  unsigned source;    // of a shuffle
  Lane lane;
};

[[noreturn]] void fail(const std::string& what) {
  std::ostringstream text;
  text << "emulation: " << what << " (waves of " << wave_size << ", block " << lane.block.x << ", " << lane.block.y
       << ", " << lane.block.z << ")";
  throw std::runtime_error(text.str());
}

unsigned num_launches = 0;

// Stacks that all launches share, each with a page below that must not be touched.
class Stacks {
 public:
  Stacks() {
    constexpr size_t kBytes = kMaxLanes * kStackBytes;
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (unsigned i = 0; i < kMaxLanes; ++i) mprotect(memory_ + i * kStackBytes, kPage, PROT_NONE);
  }
  char* top(unsigned i) const { return memory_ + (i + 1) * kStackBytes; }

 private:
  char* memory_;
};

// A thread block that runs.
class Block {
 public:
  Block(const dim3& grid, const dim3& block, void (*body)(const void*), const void* call)
      : count_(block.x * block.y * block.z), body_(body), call_(call) {
    if (count_ == 0 || count_ > kMaxLanes) fail("expected 1 to 1024 threads per block");
    for (unsigned i = 0; i < count_; ++i) {
      fibers_[i].lane = {{i % block.x, i / block.x % block.y, i / block.x / block.y}, {}, block, grid, i % wave_size};
    }
  }

  void run(const Index& index);

  // Waits on the fiber that runs until the scheduler has set its state to kReady. Returns the result.
  uint64_t wait(State state, const void* place, uint64_t value, unsigned source) {
    Fiber& fiber = *running_;
    fiber.state = state, fiber.place = place, fiber.value = value, fiber.source = source;
    multikv_switch_stack(&fiber.stack_pointer, scheduler_);
    return fiber.value;
  }

  static Block* current;

 private:
  static void enter();
  void start(Fiber& fiber, char* top);
  void resume(Fiber& fiber);
  bool run_wave(unsigned first);
  void complete(unsigned first, unsigned count);
  void check_warps(unsigned first, unsigned count, const Fiber& chosen) const;
  static bool takes_part(const Fiber& fiber, const Fiber& chosen) {
    return fiber.state == chosen.state && fiber.place == chosen.place;
  }
  bool release();

  unsigned count_;
  void (*body_)(const void*);
  const void* call_;
  Fiber* running_ = nullptr;
  void* scheduler_ = nullptr;
  static inline Fiber fibers_[kMaxLanes];
};
Block* Block::current = nullptr;

void Block::enter() {
  Block& block = *current;
  block.body_(block.call_);
  block.running_->state = State::kEnded;
  multikv_switch_stack(&block.running_->stack_pointer, block.scheduler_);
  __builtin_unreachable();
}

void Block::start(Fiber& fiber, char* top) {
  // Seven words: six registers and the return address, after which the stack is aligned as at a function's entry.
  auto* words = reinterpret_cast<void**>(top) - 2;
  *words = reinterpret_cast<void*>(&Block::enter);
  fiber.stack_pointer = words - 6;
  fiber.state = State::kReady;
}

void Block::resume(Fiber& fiber) {
  running_ = &fiber;
  lane = fiber.lane;
  multikv_switch_stack(&scheduler_, fiber.stack_pointer);
}

// Runs the lanes of a wave until each waits for lanes of other waves or has ended. Returns whether any lane ran.
bool Block::run_wave(unsigned first) {
  const unsigned count = std::min(wave_size, count_ - first);
  bool has_run = false;
  while (true) {
    bool has_ready = false;
    // An odd factor makes a permutation of the lanes.
    const unsigned factor = static_cast<unsigned>(next_random()) | 1, offset = static_cast<unsigned>(next_random());
    for (unsigned k = 0; k < wave_size; ++k) {
      const unsigned i = (k * factor + offset) % wave_size;
      if (i >= count || fibers_[first + i].state != State::kReady) continue;
      resume(fibers_[first + i]);
      has_ready = has_run = true;
    }
    if (!has_ready) return has_run;
    complete(first, count);
  }
}

// Completes the call at one of the places at which lanes of a wave wait for lanes of the wave.
void Block::complete(unsigned first, unsigned count) {
  const unsigned start = random_below(count);
  const Fiber* chosen = nullptr;
  for (unsigned k = 0; k < count && chosen == nullptr; ++k) {
    const Fiber& fiber = fibers_[first + (start + k) % count];
    if (fiber.state == State::kBallot || fiber.state == State::kShuffle) chosen = &fiber;
  }
  if (chosen == nullptr) return;
  const Fiber call = *chosen;
  check_warps(first, count, call);
  uint64_t results[64], mask = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (takes_part(fibers_[first + i], call)) mask |= (fibers_[first + i].value & 1) << i;
  }
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& fiber = fibers_[first + i];
    if (!takes_part(fiber, call)) continue;
    if (call.state == State::kBallot) {
      results[i] = mask;
    } else {
      if (fiber.source >= count || !takes_part(fibers_[first + fiber.source], call))
        fail("a lane reads a lane that takes no part in the shuffle");
      results[i] = fibers_[first + fiber.source].value;
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers_[first + i];
    if (takes_part(fiber, call)) fiber.value = results[i], fiber.state = State::kReady;
  }
}

// Fails unless all lanes of each warp take part, or none.
void Block::check_warps(unsigned first, unsigned count, const Fiber& chosen) const {
  for (unsigned warp = 0; warp < count; warp += kWarp) {
    const unsigned lanes = std::min(kWarp, count - warp);
    unsigned taking_part = 0;
    for (unsigned i = 0; i < lanes; ++i) taking_part += takes_part(fibers_[first + warp + i], chosen);
    if (taking_part != 0 && taking_part != lanes) {
      fail(std::string("only some lanes of a warp call ") + (chosen.state == State::kBallot ? "ballot" : "shuffle") +
           ": " + std::to_string(taking_part) + " of " + std::to_string(lanes));
    }
  }
}

// Lets the lanes go on that wait at __syncthreads(). Returns false if all lanes have ended.
bool Block::release() {
  const auto waiting =
      std::count_if(fibers_, fibers_ + count_, [](const Fiber& f) { return f.state == State::kBlock; });
  if (waiting == 0) return false;
  if (waiting != static_cast<int>(count_)) fail("some lanes wait at __syncthreads(), others have ended");
  for (unsigned i = 0; i < count_; ++i) {
    if (fibers_[i].place != fibers_[0].place) fail("lanes wait at different calls of __syncthreads()");
  }
  for (unsigned i = 0; i < count_; ++i) fibers_[i].state = State::kReady;
  return true;
}

void Block::run(const Index& index) {
  static const Stacks stacks;
  current = this;
  for (unsigned i = 0; i < count_; ++i) {
    fibers_[i].lane.block = index;
    start(fibers_[i], stacks.top(i));
  }
  const unsigned waves = (count_ + wave_size - 1) / wave_size;
  do {
    const unsigned offset = random_below(waves);
    const bool is_reversed = next_random() >> 63;
    for (unsigned k = 0; k < waves; ++k) {
      const unsigned wave = (k + offset) % waves;
      run_wave((is_reversed ? waves - 1 - wave : wave) * wave_size);
    }
  } while (release());
}

}  // namespace

void wait_for_block() { Block::current->wait(State::kBlock, __builtin_return_address(0), 0, 0); }
uint64_t ballot(bool predicate) {
  return Block::current->wait(State::kBallot, __builtin_return_address(0), predicate, 0);
}
uint64_t shuffle(uint64_t bits, unsigned source) {
  return Block::current->wait(State::kShuffle, __builtin_return_address(0), bits, source);
}
void* dynamic_shared_memory() { return shared_memory().dynamic(); }

void Launch::execute(const void* kernel, void (*body)(const void*), const void* call) const {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  ++num_launches;
  const unsigned count = grid_.x * grid_.y * grid_.z;
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  Block block(grid_, block_, body, call);
  for (const unsigned i : order) {
    shared_memory().fill(kernel, shared_);
    block.run({i % grid_.x, i / grid_.x % grid_.y, i / grid_.x / grid_.y});
    if (i == order.front()) shared_memory().note_written(kernel);
  }
  shared_memory().note_written(kernel);
}

}  // namespace multikv::emulation

extern "C" __attribute__((visibility("default"))) void multikv_emulate(unsigned wave_size, uint64_t seed) {
  multikv::emulation::wave_size = wave_size;
  multikv::emulation::random_state = seed * 2 + 1;
}
extern "C" __attribute__((visibility("default"))) unsigned multikv_emulated_launches() {
  return multikv::emulation::num_launches;
}
