// Runs a launch: block after block, the threads of each as fibers that take turns.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

__attribute__((section("shared__first"), used)) static char guard[4096] = {1};  // checks.cpp has the last one

namespace emulator {

constexpr size_t stack_bytes = 128 << 10, page = 4096;
constexpr size_t dynamic_space = 64 << 10;

Place place;
char* dynamic_shared;
Launch* launch;
Fiber fibers[max_threads];
Fiber* running;
unsigned thread_count;
uint32_t now, block_began, barrier_passed;
uint32_t seen[max_threads][warp_lanes];

static char* stacks;
static void* scheduler;
static std::vector<std::pair<uint32_t, Index>> begun;  // the blocks, by the time at which they began

// ---- fibers

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
    .text
    .hidden emulator_switch
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

void switch_away() { emulator_switch(&running->stack_pointer, scheduler); }

static void resume(Fiber& fiber) {
  running = &fiber;
  place.thread = fiber.index;
  emulator_switch(&scheduler, fiber.stack_pointer);
  running = nullptr;
}

void stop() {
  running->state = State::stopped;
  switch_away();
  __builtin_unreachable();
}

static void run_kernel() {
  launch->kernel->call(launch->arguments);
  running->state = State::ended;
  release_warp_of(*running);
  switch_away();
}

static Index index_in(Index size, unsigned i) { return {i % size.x, i / size.x % size.y, i / (size.x * size.y)}; }

static void prepare(unsigned i) {
  Fiber& fiber = fibers[i];
  fiber.state = State::runs;
  fiber.index = index_in(place.block_size, i);
  // Stacks begin at different lines of the cache, which holds few that differ by a power of two only.
  void** top = reinterpret_cast<void**>(stacks + (i + 1) * stack_bytes - i % 32 * 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(run_kernel);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

bool is_on_a_stack(uint64_t address) { return address - uint64_t(stacks) < max_threads * stack_bytes; }

// ---- reports

Report report_of(Fault fault, const Fiber& fiber) {
  Report report{};
  report.fault = fault;
  report.block = place.block;
  report.thread = fiber.index;
  report.line = fiber.line;
  return report;
}

void report(Report report) {
  const Report* end = launch->reports + std::min(launch->report_count, launch->report_limit);
  bool is_known = std::any_of(const_cast<const Report*>(launch->reports), end, [&](const Report& other) {
    return other.fault == report.fault && other.line == report.line && other.site == report.site;
  });
  if (is_known) return;
  if (launch->report_count < launch->report_limit) launch->reports[launch->report_count] = report;
  ++launch->report_count;
}

void report_pair(Fault fault, const Fiber& fiber, const Fiber& other) {
  Report of_both = report_of(fault, fiber);
  of_both.has_other = true;
  of_both.other_block = place.block;
  of_both.other_thread = other.index;
  of_both.other_line = other.state == State::ended ? 0 : other.line;
  of_both.lane = number(other) % warp_lanes;
  report(of_both);
}

Index block_at(uint32_t time) {
  auto later = std::upper_bound(begun.begin(), begun.end(), time, [](uint32_t t, auto& b) { return t < b.first; });
  return std::prev(later)->second;
}

// ---- blocks

void wait_for_block(int line) {
  running->line = line;
  running->state = State::at_barrier;
  switch_away();
}

// Nobody can run: whether all wait at one barrier, and else, unless all have ended, why not.
static bool is_barrier_complete() {
  auto begin = fibers, end = fibers + thread_count;
  auto first_that = [&](auto f) {
    Fiber* found = std::find_if(begin, end, f);
    return found == end ? nullptr : found;
  };
  if (first_that([](Fiber& f) { return f.state == State::stopped; })) return false;  // the others may wait for it
  if (Fiber* fiber = first_that([](Fiber& f) { return f.state == State::in_warp; })) {
    report_standstill_in_warp(*fiber);
    return false;
  }
  Fiber* waits = first_that([](Fiber& f) { return f.state == State::at_barrier; });
  if (!waits) return false;
  if (Fiber* ended = first_that([](Fiber& f) { return f.state == State::ended; })) {
    report_pair(Fault::barrier_not_reached, *waits, *ended);
    return false;
  }
  if (Fiber* other = first_that([&](Fiber& f) { return f.line != waits->line; })) {
    report_pair(Fault::barriers_differ, *waits, *other);
    return false;
  }
  return true;
}

static uint64_t random_state;

// Knuth's multiplier, MMIX; <random> would take g++ longer than all else here.
static unsigned random_below(size_t end) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return unsigned((random_state >> 33) % end);
}

// The numbers 0..count-1 as the launch asks: ascending, descending or shuffled.
static void arrange(std::vector<unsigned>& numbers, size_t count) {
  numbers.resize(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = unsigned(launch->order == 1 ? count - 1 - i : i);
  if (launch->order != 2) return;
  for (size_t i = count; i > 1; --i) std::swap(numbers[i - 1], numbers[random_below(i)]);
}

static void run_threads() {
  static std::vector<unsigned> turns;
  do {
    bool has_run = true;
    while (has_run) {
      has_run = false;
      arrange(turns, thread_count);
      for (unsigned i : turns)
        if (fibers[i].state == State::runs) {
          resume(fibers[i]);
          has_run = true;
        }
    }
    if (!is_barrier_complete()) return;
    barrier_passed = ++now;
    for (unsigned i = 0; i < thread_count; ++i) fibers[i].state = State::runs;
  } while (true);
}

static void fill_with_nan(char* begin, char* end) { memset(begin, 0xff, size_t(end - begin)); }

static void run_blocks() {
  random_state = launch->seed;
  std::vector<unsigned> order;
  arrange(order, size_t(launch->grid.x) * launch->grid.y * launch->grid.z);
  for (unsigned i : order) {
    place.block = index_in(place.grid_size, i);
    block_began = barrier_passed = ++now;
    begun.emplace_back(now, place.block);
    fill_with_nan(launch->kernel->shared_begin, launch->kernel->shared_end);
    fill_with_nan(dynamic_shared, dynamic_shared + launch->dynamic_bytes);
    if (launch->is_checked) begin_block_checks();
    for (unsigned t = 0; t < thread_count; ++t) prepare(t);
    run_threads();
    bool is_unfinished = std::any_of(fibers, fibers + thread_count, [](Fiber& f) { return f.state != State::ended; });
    if (is_unfinished || launch->report_count >= launch->report_limit) return;
  }
}

static char* reserve(size_t bytes) {
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) __builtin_trap();
  return static_cast<char*>(found);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_run(emulator::Launch* asked) {
  using namespace emulator;
  if (!stacks) {
    stacks = reserve(max_threads * stack_bytes);
    dynamic_shared = reserve(dynamic_space + 2 * page) + page;
  }
  launch = asked;
  place = {{}, {}, launch->block, launch->grid};
  thread_count = launch->block.x * launch->block.y * launch->block.z;
  now = 0;
  begun.clear();
  memset(seen, 0, sizeof seen);
  if (launch->is_checked) begin_checks();
  run_blocks();
  if (launch->is_checked) end_checks();
}
