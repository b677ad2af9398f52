// What a checked build looks for at every access: races, memory that nothing wrote or that is not there, bad addresses.
//
// g++ -fsanitize=thread puts a call of __tsan_read4 or its like before each access; those are defined here, so that no
// sanitizer's library is needed. Every 4 bytes of memory (or fewer, once a kernel has looked at fewer) have a cell that
// tells who used them last. Two uses are a race if at least one writes and no barrier stands between them.
#include <sys/mman.h>

#include <vector>

#include "runtime.h"

// The shared arrays are linked between two guards, so that what runs beyond them meets nothing else.
#pragma GCC visibility push(hidden)
extern "C" char __start_shared__first[], __stop_shared__last[], __ehdr_start[], _end[];
#pragma GCC visibility pop
__attribute__((section("shared__last"), used)) static char guard[4096] = {1};

namespace emulator {

// The latest uses of one kind that no barrier separates.
struct Trace {
  uint32_t time, lanes;
  uint16_t warp;
  bool several_warps, earlier_blocks;
};
struct Cell {
  Trace traces[3];  // by Use
};

struct Watched {
  Area area;
  Space space;
  Cell* cells;
  unsigned shift;  // a cell is of 2^shift bytes

  size_t cell_bytes() const { return (((area.end - area.begin) >> shift) + 1) * sizeof(Cell); }
};

static std::vector<Watched> watched;
static std::vector<uint8_t> written[2];  // of shared memory

static Cell* new_cells(size_t bytes) {
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) __builtin_trap();
  return static_cast<Cell*>(found);
}

static void watch(Area area, Space space) {
  if (area.begin == area.end) return;
  Watched one{area, space, nullptr, 2};
  one.cells = new_cells(one.cell_bytes());
  watched.push_back(one);
}

static void watch_shared(char* begin, size_t bytes, Space space, std::vector<uint8_t>& bytes_written) {
  bytes_written.assign(bytes, 0);
  watch({uint64_t(begin), uint64_t(begin) + bytes, bytes_written.data()}, space);
}

void begin_checks() {
  const Kernel& kernel = *launch->kernel;
  watch_shared(kernel.shared_begin, size_t(kernel.shared_end - kernel.shared_begin), Space::fixed_shared, written[0]);
  watch_shared(dynamic_shared, launch->dynamic_bytes, Space::dynamic_shared, written[1]);
  for (int i = 0; i < launch->area_count; ++i) watch(launch->areas[i], Space::global);
}

void begin_block_checks() {
  for (auto& bytes : written) std::fill(bytes.begin(), bytes.end(), 0);
}

void end_checks() {
  for (Watched& one : watched) munmap(one.cells, one.cell_bytes());
  watched.clear();
}

// ---- order

static unsigned unordered_lanes(const Trace& trace, unsigned me) {
  unsigned lanes = trace.lanes & ~(1u << me % warp_lanes), left = 0;
  for (; lanes; lanes &= lanes - 1) {
    unsigned lane = unsigned(__builtin_ctz(lanes));
    if (trace.time >= seen[me][lane]) left |= 1u << lane;
  }
  return left;
}

static bool is_ordered(const Trace& trace, unsigned me, bool is_shared) {
  if (trace.time < block_began) return trace.time == 0 || is_shared;  // no barrier orders two blocks
  if (trace.earlier_blocks) return false;
  if (trace.time < barrier_passed) return true;
  return !trace.several_warps && trace.warp == me / warp_lanes && !unordered_lanes(trace, me);
}

static void extend(Trace& trace, unsigned me, bool is_shared) {
  bool earlier = !is_shared && trace.time && (trace.earlier_blocks || trace.time < block_began);
  Trace mine{now, 1u << me % warp_lanes, uint16_t(me / warp_lanes), false, earlier};
  if (trace.time >= barrier_passed) {
    mine.several_warps = trace.several_warps || trace.warp != mine.warp;
    if (mine.several_warps) mine.lanes = trace.lanes, mine.warp = trace.warp;
    else mine.lanes |= unordered_lanes(trace, me);
  }
  trace = mine;
}

// ---- one access

static Report report_at(Fault fault, const Watched* where, uint64_t address, unsigned size, Use use, const void* site) {
  Report found = report_of(fault, *running);
  found.line = 0;
  found.use = use;
  found.size = size;
  found.space = where ? where->space : Space::none;
  found.address = found.space == Space::global || !where ? address : address - where->area.begin;
  if (site) found.site = uint64_t(site) - uint64_t(__ehdr_start);
  return found;
}

static void name_other(Report& found, const Trace& trace, Use use) {
  bool may_be_me = trace.time >= block_began && trace.warp == number(*running) / warp_lanes;
  unsigned others = may_be_me ? trace.lanes & ~(1u << lane()) : trace.lanes;
  found.other_use = use;
  found.has_other = others != 0;
  if (!found.has_other) return;
  found.other_block = block_at(trace.time);
  found.other_thread = fibers[trace.warp * warp_lanes + unsigned(__builtin_ctz(others))].index;
}

static void check_written(const Watched& where, uint64_t address, unsigned size, Use use, const void* site) {
  uint8_t* flags = where.area.written + (address - where.area.begin);
  if (use != Use::write && memchr(flags, 0, size))
    report(report_at(Fault::uninitialised, &where, address, size, use, site));
  if (use != Use::read) memset(flags, 1, size);
}

static void check_order(const Watched& where, uint64_t address, unsigned size, Use use, const void* site) {
  unsigned me = number(*running);
  bool is_shared = where.space != Space::global;
  size_t first = (address - where.area.begin) >> where.shift;
  size_t last = (address - where.area.begin + size - 1) >> where.shift;
  for (size_t i = first; i <= last; ++i) {
    Cell& cell = where.cells[i];
    for (Use other : {Use::read, Use::write, Use::atomic}) {
      if (other == use && use != Use::write) continue;
      const Trace& trace = cell.traces[int(other)];
      if (is_ordered(trace, me, is_shared)) continue;
      Report found = report_at(Fault::race, &where, address, size, use, site);
      name_other(found, trace, other);
      report(found);
    }
    extend(cell.traces[int(use)], me, is_shared);
  }
}

// Each new cell begins with what the larger one knew.
static void refine(Watched& where, unsigned size) {
  Watched old = where;
  where.shift = unsigned(__builtin_ctz(size));
  where.cells = new_cells(where.cell_bytes());
  size_t count = ((where.area.end - where.area.begin) >> where.shift) + 1;
  for (size_t i = 0; i < count; ++i) where.cells[i] = old.cells[i >> (old.shift - where.shift)];
  munmap(old.cells, old.cell_bytes());
}

static Watched* find(uint64_t address, unsigned size) {
  static size_t latest;  // mostly the right one again
  auto holds = [&](const Watched& one) { return address >= one.area.begin && address + size <= one.area.end; };
  if (latest < watched.size() && holds(watched[latest])) return &watched[latest];
  for (latest = 0; latest < watched.size(); ++latest)
    if (holds(watched[latest])) return &watched[latest];
  return nullptr;
}

// Constants, and what the emulator itself keeps: in the module, but not where the shared arrays are.
static bool is_of_module(uint64_t address) {
  bool is_inside = address >= uint64_t(__ehdr_start) && address < uint64_t(_end);
  return is_inside && !(address >= uint64_t(__start_shared__first) && address < uint64_t(__stop_shared__last));
}

void check_alignment(const void* pointer, unsigned size, Use use, const void* site) {
  uint64_t address = uint64_t(pointer);
  if (!running || address % size == 0) return;
  if (!site) site = __builtin_return_address(0);
  report(report_at(Fault::misaligned, find(address, size), address, size, use, site));
  stop();
}

void check_access(const void* pointer, unsigned size, Use use, const void* site) {
  uint64_t address = uint64_t(pointer);
  bool is_of_place = address - uint64_t(&place) < sizeof place;  // threadIdx and its like
  if (is_of_place || !running || !launch->is_checked) return;
  Watched* where = find(address, size);
  if (!where) {
    if (is_on_a_stack(address) || is_of_module(address)) return;
    report(report_at(Fault::outside, nullptr, address, size, use, site));
    stop();
  }
  unsigned unit = size & (~size + 1);  // the largest power of two that divides it
  if (address & (unit - 1)) check_alignment(pointer, unit, use, site);
  if (unit < 1u << where->shift) refine(*where, unit);
  if (where->area.written) check_written(*where, address, size, use, site);
  check_order(*where, address, size, use, site);
}

}  // namespace emulator

#define HOOK(name, size, use) \
  extern "C" void name(void* address) { emulator::check_access(address, size, use, __builtin_return_address(0)); }
#define HOOKS(size)                                            \
  HOOK(__tsan_read##size, size, emulator::Use::read)           \
  HOOK(__tsan_write##size, size, emulator::Use::write)         \
  HOOK(__tsan_unaligned_read##size, size, emulator::Use::read) \
  HOOK(__tsan_unaligned_write##size, size, emulator::Use::write)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)

extern "C" void __tsan_read_range(void* address, unsigned long size) {
  emulator::check_access(address, unsigned(size), emulator::Use::read, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, unsigned long size) {
  emulator::check_access(address, unsigned(size), emulator::Use::write, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
