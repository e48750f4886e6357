/* Opens a checkpoint, finds a tensor by its name, and reads its first values in place. */

#include <safetensors_lazy.h>
#include <stdio.h>

#include "../common/arguments.h"

static const char usage[] = "model.safetensors tensor\n";

int main(int argc, char **argv) {
    if (answer_help(argc, argv, usage))
        return 0;
    for (int i = 1; i < argc; i++)
        if (i > 2 || (i == 1 && argv[i][0] == '-'))
            return refuse_argument(argv, usage, argv[i]);
    if (argc < 3)
        return refuse_arguments(argv, usage, "a model and a tensor are needed", NULL);
    st_checkpoint *model;
    st_error err;
    if (st_open(argv[1], NULL, &model, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    size_t index, nbytes;
    const void *data;
    st_tensor tensor;
    int failed = 1;
    if (st_find(model, argv[2], &index) != ST_OK) {
        fprintf(stderr, "%s has no tensor %s\n", argv[1], argv[2]);
    } else if (st_tensor_info(model, index, &tensor, &err) != ST_OK ||
               st_tensor_ptr(model, index, &data, &nbytes, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
    } else if (tensor.dtype != ST_DTYPE_F32) {
        fprintf(stderr, "%s is %s; this example prints F32 only\n", tensor.name, st_dtype_name(tensor.dtype));
    } else {
        const float *values = data; /* a mapped page: read now, when it is touched */
        for (size_t i = 0; i < nbytes / sizeof(float) && i < 4; i++)
            printf("%s[%zu] = %g\n", tensor.name, i, (double)values[i]);
        failed = 0;
    }
    st_close(model);
    return failed;
}
