// What runtime.cpp and checks.cpp share: the threads of the block that runs, and the reports on what is wrong.
#pragma once
#include "emulator.h"

namespace emulator {

constexpr unsigned max_threads = 1024, warp_lanes = 32;

enum class State : uint8_t { runs, at_barrier, in_warp, ended, stopped };

struct Fiber {
  void* stack_pointer;
  Index index;
  State state;
  Meeting meeting;  // these are of where it waits
  int line, source;
  unsigned mask;
  uint64_t value, result;
};

// In the order of SENTENCES in messages.py.
enum class Fault : int {
  race,
  uninitialised,
  outside,
  misaligned,
  barrier_not_reached,
  barriers_differ,
  not_in_mask,
  lane_ended,
  lane_waits_elsewhere,
  absent_source,
};
enum class Space : int { none, fixed_shared, dynamic_shared, global };

// Python reads it: class Report in messages.py has the same fields.
struct Report {
  Fault fault;
  Use use, other_use;
  Space space;
  Index block, thread, other_block, other_thread;
  int has_other, lane, line, other_line;
  unsigned size;
  uint64_t address;  // in shared memory: the offset
  uint64_t site;     // in the machine code of the module, or 0
};

struct Area {
  uint64_t begin, end;
  uint8_t* written;  // whether each byte is; null where all are
};

struct Launch {
  const Kernel* kernel;
  void** arguments;
  Index grid, block;
  int order;
  unsigned seed;
  uint64_t dynamic_bytes;
  const Area* areas;
  int area_count, is_checked;
  Report* reports;
  int report_limit, report_count;
};

extern Launch* launch;
extern Fiber fibers[max_threads];
extern Fiber* running;
extern unsigned thread_count;

// Time is counted in meetings. What came before the last barrier is in order for everybody, and what lane j did before
// seen[i][j] is for thread i.
extern uint32_t now, block_began, barrier_passed;
extern uint32_t seen[max_threads][warp_lanes];

inline unsigned number(const Fiber& fiber) { return unsigned(&fiber - fibers); }
Index block_at(uint32_t time);
bool is_on_a_stack(uint64_t address);

// Of a fault only the first at each place in the text is kept.
void report(Report report);
Report report_of(Fault fault, const Fiber& fiber);
void report_pair(Fault fault, const Fiber& fiber, const Fiber& other);
[[noreturn]] void stop();
void switch_away();

void release_warp_of(const Fiber& ended);
void report_standstill_in_warp(const Fiber& fiber);

void begin_checks();
void begin_block_checks();
void end_checks();

}  // namespace emulator
