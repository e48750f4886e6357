#include "engines.h"

#include <string.h>

static const struct {
    int32_t engine;
    const char *name;
} engines[] = {{ST_ENGINE_AUTO, "auto"},
               {ST_ENGINE_MEMORY, "memory"},
               {ST_ENGINE_BUFFERED, "buffered"},
               {ST_ENGINE_DIRECT, "direct"},
               {ST_ENGINE_URING, "uring"}};

int engine_find(const char *name, int32_t *engine) {
    for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
        if (strcmp(name, engines[i].name) == 0) {
            *engine = engines[i].engine;
            return 1;
        }
    return 0;
}

const char *engine_names(uint32_t found, char names[ENGINE_NAMES]) {
    names[0] = 0;
    for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
        if (found & (uint32_t)engines[i].engine)
            strcat(strcat(names, names[0] ? "+" : ""), engines[i].name);
    return names;
}
