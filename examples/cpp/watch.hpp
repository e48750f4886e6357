#ifndef WATCH_HPP
#define WATCH_HPP

#include <safetensors_lazy.hpp>

#include "../common/watch.h"

// Shows how far a task or a load is as long as it lives, and lets Ctrl-C cancel it: watch.h.
class Watch {
public:
    Watch(const safetensors_lazy::Task &task, const char *what) : watch_(watch_begin(task.get(), what)) {}
    Watch(const safetensors_lazy::Load &load, const char *what) : watch_(watch_begin_load(load.get(), what)) {}
    Watch(const Watch &) = delete;
    Watch &operator=(const Watch &) = delete;
    ~Watch() { watch_end(watch_); }

    // For work of our own, which the task does not end.
    void check() const {
        if (watch_interrupted(watch_))
            throw safetensors_lazy::Error(ST_ERR_CANCELLED, "interrupted");
    }

private:
    watch *watch_;
};

#endif
