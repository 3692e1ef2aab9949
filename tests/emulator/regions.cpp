#include "regions.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "emulator.h"
#include "running.h"
#include "symbols.h"

namespace emulator {

Region::Region(const void* pointer, size_t bytes, std::string name, bool initialised, bool shared, bool of_launch)
    : begin(reinterpret_cast<uintptr_t>(pointer)),
      end(begin + bytes),
      name(std::move(name)),
      shared(shared),
      of_launch(of_launch),
      cells((bytes + 3) / 4) {
  for (Cell& cell : cells) cell.initialised = initialised;
}

void Region::refine() {
  std::vector<Cell> bytes;
  for (uintptr_t i = 0; i < end - begin; ++i) bytes.push_back(cells[i / 4]);
  cells.swap(bytes);
  shift = 0;
}

namespace {

std::vector<std::unique_ptr<Region>> all;  // by address
Region* last = nullptr;                    // that was found
bool registered = false;

void add(std::unique_ptr<Region> region) {
  const auto after = std::find_if(all.begin(), all.end(), [&](const auto& r) { return r->begin > region->begin; });
  last = all.insert(after, std::move(region))->get();
}

void remove_if(auto condition) {
  std::erase_if(all, [&](const auto& region) { return condition(*region); });
  last = nullptr;
}

void forget_contents(Region& region) {
  std::memset(reinterpret_cast<void*>(region.begin), 0xff, region.end - region.begin);
  for (Cell& cell : region.cells) cell.initialised = false;
}

Region of_static(const symbols::Symbol& object) {
  const void* begin = reinterpret_cast<const void*>(object.begin);
  return {begin, object.end - object.begin, "shared " + symbols::last_name(object), false, true, true};
}

std::string beside(uintptr_t address, const Region& region) {
  const std::string name = region.name + " (" + std::to_string(region.end - region.begin) + " bytes)";
  if (address < region.begin) return std::to_string(region.begin - address) + " bytes before " + name;
  if (address < region.end) return "offset " + std::to_string(address - region.begin) + " of " + name;
  return std::to_string(address - region.end) + " bytes after the end of " + name;
}

}  // namespace

void memory(const void* pointer, size_t bytes, const char* name, bool initialised) {
  if (!bytes) return;
  auto region = std::make_unique<Region>(pointer, bytes, name, initialised, false, false);
  remove_if([&](const Region& r) { return r.begin < region->end && region->begin < r.end; });
  add(std::move(region));
  registered = true;
}

void forget_memory() {
  remove_if([](const Region&) { return true; });
  registered = false;
}

namespace regions {

bool any() { return registered; }

Region* at(uintptr_t address) {
  if (last && address >= last->begin && address < last->end) return last;
  auto after =
      std::upper_bound(all.begin(), all.end(), address, [](uintptr_t a, const auto& r) { return a < r->begin; });
  if (after != all.begin() && address < after[-1]->end) return last = after[-1].get();
  const symbols::Symbol* object = symbols::static_before(address);
  if (!object || address >= object->end) return nullptr;
  add(std::make_unique<Region>(of_static(*object)));
  forget_contents(*last);
  return last;
}

bool constant(uintptr_t address) { return symbols::constant(address); }

std::string place(uintptr_t address) {
  constexpr uintptr_t kNear = 1 << 20;
  const Region* nearest = nullptr;
  uintptr_t least = kNear;
  for (const auto& r : all) {
    const uintptr_t distance = address < r->begin ? r->begin - address : address < r->end ? 0 : address - r->end;
    if (distance < least) nearest = r.get(), least = distance;
  }
  const symbols::Symbol* object = symbols::static_before(address);
  if (object && address >= object->end && address - object->end < least) return beside(address, of_static(*object));
  return nearest ? beside(address, *nearest) : "far from all memory";
}

void launch_begins() {
  if (registered && running.shared_bytes) {
    add(std::make_unique<Region>(running.shared, running.shared_bytes, "dynamic shared memory", false, true, true));
  }
}

void block_begins() {
  for (const auto& region : all) {
    if (region->of_launch) forget_contents(*region);
  }
}

void launch_ends() {
  remove_if([](const Region& region) { return region.of_launch; });
}

}  // namespace regions

}  // namespace emulator
