// The host twin: every kernel of kernels.cu as plain C++, run thread by thread.
//
// It lets kernels be tested, and a stand-in for the driver work, where there is no device. The
// bits are those of a device; the speed is not. Thread rule: launches may run at the same time on
// different threads. Compiled with -ffp-contract=off.
#define UNISONO_ALL
#include "kernels.cu"

namespace {

const unisono::twin::Entry *find(const char *name) {
    const unisono::twin::Entry *entry = unisono::twin::Entry::first();
    while (entry != nullptr && strcmp(entry->name, name) != 0) {
        entry = entry->next;
    }
    return entry;
}

} // namespace

extern "C" {

// Whether there is a kernel of this name: 1 or 0.
int unisono_twin_has(const char *name) { return find(name) != nullptr; }

// Bytes of the kernel's arguments; 0 for an unknown name.
size_t unisono_twin_size(const char *name) {
    const unisono::twin::Entry *entry = find(name);
    return entry != nullptr ? entry->bytes : 0;
}

// Runs every thread of every block, one after the other. 0, or -1 for an unknown name.
int unisono_twin_launch(const char *name, unsigned grid, unsigned block, const void *arguments) {
    const unisono::twin::Entry *entry = find(name);
    if (entry == nullptr) {
        return -1;
    }
    unisono::gridDim.x = grid;
    unisono::blockDim.x = block;
    for (unsigned b = 0; b < grid; ++b) {
        for (unsigned t = 0; t < block; ++t) {
            unisono::blockIdx.x = b;
            unisono::threadIdx.x = t;
            entry->run(arguments);
        }
    }
    return 0;
}
}
