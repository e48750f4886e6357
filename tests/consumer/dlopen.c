/* Loads the library, uses it in two threads, and unloads it, twice. */
#include <dlfcn.h>
#include <pthread.h>
#include <safetensors_lazy.h>
#include <stdio.h>
#include <string.h>

typedef st_status open_buffer(const void *, size_t, const st_open_options *, st_checkpoint **, st_error *);
typedef void close_checkpoint(st_checkpoint *);

static open_buffer *open_it;
static close_checkpoint *close_it;

static void *use(void *unused) {
    st_checkpoint *checkpoint;
    st_error err;
    (void)unused;
    if (open_it("\x02\0\0\0\0\0\0\0{]", 10, NULL, &checkpoint, &err) != ST_ERR_HEADER_JSON)
        return "a damaged header was taken";
    if (open_it("\x02\0\0\0\0\0\0\0{}", 10, NULL, &checkpoint, &err) != ST_OK)
        return "an empty checkpoint was refused";
    close_it(checkpoint);
    return NULL;
}

int main(int argc, char **argv) {
    for (int i = 0; i < 2 && argc == 2; i++) {
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        void *symbols[] = {dlsym(library, "st_open_buffer"), dlsym(library, "st_close")};
        if (!symbols[0] || !symbols[1])
            return 1;
        memcpy(&open_it, &symbols[0], sizeof(open_it));
        memcpy(&close_it, &symbols[1], sizeof(close_it));
        pthread_t thread;
        void *complaint = use(NULL), *other = NULL;
        if (pthread_create(&thread, NULL, use, NULL) != 0 || pthread_join(thread, &other) != 0)
            return 1;
        if (complaint || other) {
            fprintf(stderr, "%s\n", (const char *)(complaint ? complaint : other));
            return 1;
        }
        if (dlclose(library) != 0)
            return 1;
    }
    return argc == 2 ? 0 : 2;
}
