// Threads that run one function together and wait for each other between its phases.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "lanes.h"

// The part of `count` items that belongs to one of `size` threads.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int rank, int size) : begin(count * rank / size), end(count * (rank + 1) / size) {}
};

class Team {
   public:
    explicit Team(int size) : size(size) {
        for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { serve(rank); });
    }

    ~Team() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_ = nullptr;
            ++round_;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    // Calls work(rank) in every thread, this one included, and returns when all are done.
    void run(const std::function<void(int)>& work) {
        if (size > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                work_ = &work;
                ++round_;
            }
            wake_.notify_all();
        }
        work(0);
        wait();
    }

    // Returns when every thread of the team has called it. Phases take microseconds, so it spins; it yields the core
    // after a while, because another thread of the team may be waiting for it.
    void wait() {
        if (size == 1) return;
        int phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }

    const int size;

   private:
    void serve(int rank) {
        for (int64_t seen = 0;;) {
            const std::function<void(int)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_ != seen; });
                seen = round_;
                work = work_;
            }
            if (!work) return;
            (*work)(rank);
            wait();
        }
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    int64_t round_ = 0;
    std::atomic<int> arrived_{0}, phase_{0};
};
