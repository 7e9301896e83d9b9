// The threads of all loaded recurrences: those of the process's OpenMP where there is one, as its threads poll for a while after
// each of torch's parallel regions and would keep others off the cores. Else a call takes parked workers off a list, or starts new
// ones, and puts them back: calls from several threads never wait for each other, and there are as many workers as were ever needed
// at once.
#include "runtime.h"

#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <system_error>
#include <thread>

namespace {

struct alignas(64) Worker {
    uint32_t posted = 0;  // calls so far
    uint32_t parked = 0;
    frnn::Job f;
    void* context;
    int index, count;
    const fenv_t* modes;   // of the caller: rounding and flushing of denormals
    uint32_t* unfinished;  // workers of the call still in it
    std::mutex mutex;
    std::condition_variable wake;
    Worker* next;

    void run() {
        for (uint32_t seen = 0;; ++seen) {
            const auto called = [&] { return __atomic_load_n(&posted, __ATOMIC_SEQ_CST) != seen; };
            for (int polls = 0; polls < 1000 && !called(); ++polls) frnn::relax();  // the next call may follow at once
            if (!called()) {
                std::unique_lock<std::mutex> lock(mutex);
                __atomic_store_n(&parked, 1u, __ATOMIC_SEQ_CST);
                while (!called()) wake.wait(lock);
                __atomic_store_n(&parked, 0u, __ATOMIC_SEQ_CST);
            }
            fesetenv(modes);
            f(context, index, count);
            __atomic_sub_fetch(unfinished, 1u, __ATOMIC_RELEASE);  // last touch: the caller may post again
        }
    }

    void post() {
        __atomic_add_fetch(&posted, 1u, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&parked, __ATOMIC_SEQ_CST)) {
            std::lock_guard<std::mutex> lock(mutex);
            wake.notify_one();
        }
    }
};

// Never destroyed: workers are still parked when a process ends.
pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
Worker* idle = nullptr;

Worker* take() {
    pthread_mutex_lock(&guard);
    Worker* worker = idle;
    if (worker) idle = worker->next;
    pthread_mutex_unlock(&guard);
    if (worker) return worker;
    worker = new Worker;
    try {
        std::thread([worker] { worker->run(); }).detach();
    } catch (const std::system_error&) {
        delete worker;
        return nullptr;
    }
    return worker;
}

// GNU's interface to OpenMP, which LLVM's libomp offers too.
struct OpenMP {
    void (*parallel)(void (*f)(void*), void* context, unsigned threads, unsigned flags);
    int (*index)();
    int (*count)();
} openmp = {};

void run_openmp(int threads, frnn::Job f, void* context) {
    struct Call {
        frnn::Job f;
        void* context;
        fenv_t modes;  // of the caller
    } call = {f, context, {}};
    fegetenv(&call.modes);
    openmp.parallel(
        [](void* given) {
            const Call& call = *(const Call*)given;
            fenv_t own;  // the thread is torch's
            fegetenv(&own);
            fesetenv(&call.modes);
            call.f(call.context, openmp.index(), openmp.count());
            fesetenv(&own);
        },
        &call, unsigned(threads), 0);
}

// A child of fork() has no thread but the one that forked, so it starts with an empty list, and without OpenMP, which would wait
// for the threads it had.
void before_fork() { pthread_mutex_lock(&guard); }
void in_parent() { pthread_mutex_unlock(&guard); }
void in_child() {
    idle = nullptr;
    openmp = {};
    pthread_mutex_unlock(&guard);
}
__attribute__((constructor)) void watch_forks() { pthread_atfork(before_fork, in_parent, in_child); }

}  // namespace

// GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the process's OpenMP; three nulls for none.
extern "C" __attribute__((visibility("default"))) void frnn_use_openmp(void* parallel, void* index, void* count) {
    openmp = {(decltype(openmp.parallel))parallel, (decltype(openmp.index))index, (decltype(openmp.count))count};
}

extern "C" __attribute__((visibility("default"))) void frnn_run_team(int threads, frnn::Job f, void* context) {
    if (openmp.parallel) return run_openmp(threads, f, context);
    Worker* taken = nullptr;
    int count = 1;
    for (; count < threads; ++count) {
        Worker* worker = take();
        if (!worker) break;
        worker->next = taken;
        taken = worker;
    }
    alignas(64) uint32_t unfinished = uint32_t(count - 1);
    fenv_t modes;
    fegetenv(&modes);
    int index = count;
    for (Worker* worker = taken; worker; worker = worker->next) {
        worker->f = f;
        worker->context = context;
        worker->index = --index;
        worker->count = count;
        worker->modes = &modes;
        worker->unfinished = &unfinished;
        worker->post();
    }
    f(context, 0, count);
    frnn::wait_until([&] { return __atomic_load_n(&unfinished, __ATOMIC_ACQUIRE) == 0; });
    if (!taken) return;
    Worker* last = taken;
    while (last->next) last = last->next;
    pthread_mutex_lock(&guard);
    last->next = idle;
    idle = taken;
    pthread_mutex_unlock(&guard);
}
