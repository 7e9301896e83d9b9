// How a generated loop uses its threads and its memory.
#pragma once

#include "scalars.h"

extern "C" void* aligned_alloc(size_t, size_t) noexcept;
extern "C" void free(void*) noexcept;

namespace frnn {

// The threads of one group. The first runs the loop and calls the others for what is worth sharing.
struct Crew {
    int count = 1;
    Barrier barrier;
    void (*job)(void*, int, int) = nullptr;
    void* context = nullptr;
    bool over = false;

    // Runs f(index, count) on all of them; every one is done when it returns.
    template <class F>
    void all(F f) {
        if (count == 1) return f(0, 1);
        job = [](void* c, int index, int of) { (*static_cast<F*>(c))(index, of); };
        context = &f;
        barrier.wait(count);
        f(0, count);
        barrier.wait(count);
    }
    void serve(int index) {
        for (;;) {
            barrier.wait(count);
            if (over) return;
            job(context, index, count);
            barrier.wait(count);
        }
    }
    void dismiss() {
        over = true;
        barrier.wait(count);
    }
};

// C = A @ W, the columns shared among a crew.
template <class S, class P>
void crew_product(Crew& crew, const S* a, int64_t M, const P* packed, int64_t K, int64_t N, S* c) {
    if (M == 0) return;
    const int64_t panels = (N + panel<S> - 1) / panel<S>;
    const auto part = [&](int index, int of) {
        const int64_t begin = panels * index / of * panel<S>, end = panels * (index + 1) / of * panel<S>;
        if (begin < end) product<S, P>(a, K, M, packed, K, N, begin, end < N ? end : N, nullptr, c, N, false);
    };
    if (panels < 2 * crew.count || M * K * N < 262144)  // below about 20 us a second thread is not worth waiting for
        part(0, 1);
    else
        crew.all(part);
}

// Memory of one call, freed with it.
struct Memory {
    struct alignas(64) Block {
        Block* before;
    };
    Block* last = nullptr;

    char* take(int64_t bytes) {
        Block* const block = (Block*)aligned_alloc(64, sizeof(Block) + (size_t)((bytes + 63) & ~(int64_t)63));
        block->before = last;
        last = block;
        return (char*)(block + 1);
    }
    ~Memory() {
        while (last) {
            Block* const block = last;
            last = block->before;
            free(block);
        }
    }
};

FRNN_INLINE int64_t rounded_up(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

}  // namespace frnn
