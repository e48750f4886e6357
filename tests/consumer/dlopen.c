/* Loads the library, uses it in two threads, and unloads it, twice. A DLPack tensor is freed after that. */
#include <dlfcn.h>
#include <pthread.h>
#include <safetensors_lazy.h>
#include <stdio.h>
#include <string.h>

typedef st_status open_buffer(const void *, size_t, const st_open_options *, st_checkpoint **, st_error *);
typedef void close_checkpoint(st_checkpoint *);
typedef st_status export_tensor(st_checkpoint *, size_t, const st_range *, size_t, DLManagedTensorVersioned **, st_error *);

/* The start of dlpack.h's struct. */
struct DLManagedTensorVersioned {
    uint32_t version[2];
    void *manager_ctx;
    void (*deleter)(DLManagedTensorVersioned *);
};

static open_buffer *open_it;
static close_checkpoint *close_it;
static export_tensor *export_it;

/* A tensor whose checkpoint has been closed. */
static DLManagedTensorVersioned *exported(void) {
    static const char file[] = "\x3a\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}     !";
    st_checkpoint *checkpoint;
    DLManagedTensorVersioned *tensor = NULL;
    if (open_it(file, sizeof(file) - 1, NULL, &checkpoint, NULL) == ST_OK) {
        export_it(checkpoint, 0, NULL, 0, &tensor, NULL);
        close_it(checkpoint);
    }
    return tensor;
}

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
        void *symbols[] = {dlsym(library, "st_open_buffer"), dlsym(library, "st_close"), dlsym(library, "st_tensor_dlpack")};
        if (!symbols[0] || !symbols[1] || !symbols[2])
            return 1;
        memcpy(&open_it, &symbols[0], sizeof(open_it));
        memcpy(&close_it, &symbols[1], sizeof(close_it));
        memcpy(&export_it, &symbols[2], sizeof(export_it));
        pthread_t thread;
        void *complaint = use(NULL), *other = NULL;
        if (pthread_create(&thread, NULL, use, NULL) != 0 || pthread_join(thread, &other) != 0)
            return 1;
        if (complaint || other) {
            fprintf(stderr, "%s\n", (const char *)(complaint ? complaint : other));
            return 1;
        }
        DLManagedTensorVersioned *tensor = exported();
        if (!tensor || dlclose(library) != 0)
            return 1;
        tensor->deleter(tensor);
    }
    return argc == 2 ? 0 : 2;
}
