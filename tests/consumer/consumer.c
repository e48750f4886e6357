#include <safetensors_lazy.h>
#include <stdio.h>

static const char file[] = "\x3a\0\0\0\0\0\0\0{\"t\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}     abc";

int main(void) {
    st_checkpoint *checkpoint;
    st_error err;
    const void *data;
    size_t nbytes;
    if (st_open("/nonexistent/file", NULL, &checkpoint, &err) != ST_ERR_IO)
        return 1;
    if (st_open_buffer(file, sizeof(file) - 1, NULL, &checkpoint, &err) != ST_OK ||
        st_tensor_ptr(checkpoint, 0, &data, &nbytes, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    printf("safetensors_lazy %s: %.*s\n", st_version(), (int)nbytes, (const char *)data);
    st_close(checkpoint);
    return 0;
}
