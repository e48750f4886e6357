/* The names of engines, for options and messages. */
#ifndef ENGINES_H
#define ENGINES_H

#include <safetensors_lazy.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Finds ST_ENGINE_* by its name: "auto", "buffered", ... Gives 0 if there is none of that name. */
int engine_find(const char *name, int32_t *engine);

enum { ENGINE_NAMES = 32 };

/* Writes the names of engines, ST_ENGINE_* or'ed as in st_progress.engines, and gives names. */
const char *engine_names(uint32_t engines, char names[ENGINE_NAMES]);

#ifdef __cplusplus
}
#endif

#endif
