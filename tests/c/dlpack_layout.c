/*
 * The layout that the library writes (80 and 64 bytes: src/ffi/dlpack.rs) is that of dlpack.h, which may come before or after
 * safetensors_lazy.h. Compiled in both orders, as C11 and as C++17.
 */
#ifdef DLPACK_H_first
#include <dlpack/dlpack.h>

#include <safetensors_lazy.h>
#else
#include <safetensors_lazy.h>

#include <dlpack/dlpack.h>
#endif

#include <assert.h>

#define AT(type, field, offset) static_assert(offsetof(type, field) == (offset), #type "." #field)

static_assert(DLPACK_MAJOR_VERSION == 1 && DLPACK_MINOR_VERSION >= 1, "DLPack 1.1 or later, with the same major version");

static_assert(sizeof(DLTensor) == 48, "DLTensor");
AT(DLTensor, data, 0);
AT(DLTensor, device, 8);
AT(DLTensor, ndim, 16);
AT(DLTensor, dtype, 20);
AT(DLTensor, shape, 24);
AT(DLTensor, strides, 32);
AT(DLTensor, byte_offset, 40);
static_assert(sizeof(DLDevice) == 8 && sizeof(DLDataType) == 4, "DLDevice, DLDataType");
AT(DLDevice, device_id, 4);
AT(DLDataType, code, 0);
AT(DLDataType, bits, 1);
AT(DLDataType, lanes, 2);

static_assert(sizeof(struct DLManagedTensor) == 64, "DLManagedTensor");
AT(struct DLManagedTensor, dl_tensor, 0);
AT(struct DLManagedTensor, manager_ctx, 48);
AT(struct DLManagedTensor, deleter, 56);

static_assert(sizeof(struct DLManagedTensorVersioned) == 80, "DLManagedTensorVersioned");
AT(struct DLManagedTensorVersioned, version, 0);
AT(struct DLManagedTensorVersioned, manager_ctx, 8);
AT(struct DLManagedTensorVersioned, deleter, 16);
AT(struct DLManagedTensorVersioned, flags, 24);
AT(struct DLManagedTensorVersioned, dl_tensor, 32);

static_assert(kDLCPU == 1 && DLPACK_FLAG_BITMASK_READ_ONLY == 1, "");
static_assert(kDLInt == 0 && kDLUInt == 1 && kDLFloat == 2 && kDLBfloat == 4 && kDLComplex == 5 && kDLBool == 6, "");
static_assert(kDLFloat8_e4m3fn == 10 && kDLFloat8_e4m3fnuz == 11 && kDLFloat8_e5m2 == 12 && kDLFloat8_e5m2fnuz == 13, "");
static_assert(kDLFloat8_e8m0fnu == 14 && kDLFloat6_e2m3fn == 15 && kDLFloat6_e3m2fn == 16 && kDLFloat4_e2m1fn == 17, "");

int main(void) {
    return 0;
}
