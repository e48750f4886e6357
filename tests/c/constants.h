/* The numbers of statuses and dtypes, which never change. header.sh holds this list against the header. */

#define STATUSES(X)                                                                                                    \
    X(ST_OK, 0)                                                                                                        \
    X(ST_DONE, 1)                                                                                                      \
    X(ST_TIMEOUT, 2)                                                                                                   \
    X(ST_ERR_INVALID_ARGUMENT, 100)                                                                                    \
    X(ST_ERR_NOT_FOUND, 101)                                                                                           \
    X(ST_ERR_OUT_OF_RANGE, 102)                                                                                        \
    X(ST_ERR_BUFFER_TOO_SMALL, 103)                                                                                    \
    X(ST_ERR_NOT_CONTIGUOUS, 104)                                                                                      \
    X(ST_ERR_MISALIGNED, 105)                                                                                          \
    X(ST_ERR_UNSUPPORTED, 106)                                                                                         \
    X(ST_ERR_BUDGET, 107)                                                                                              \
    X(ST_ERR_IN_USE, 108)                                                                                              \
    X(ST_ERR_NOT_DIVISIBLE, 109)                                                                                       \
    X(ST_ERR_CANCELLED, 110)                                                                                           \
    X(ST_ERR_INTERNAL, 199)                                                                                            \
    X(ST_ERR_IO, 200)                                                                                                  \
    X(ST_ERR_NO_MEMORY, 201)                                                                                           \
    X(ST_ERR_NOT_A_FILE, 202)                                                                                          \
    X(ST_ERR_TRUNCATED, 203)                                                                                           \
    X(ST_ERR_FILE_CHANGED, 204)                                                                                        \
    X(ST_ERR_HEADER_TOO_SMALL, 300)                                                                                    \
    X(ST_ERR_HEADER_TOO_LARGE, 301)                                                                                    \
    X(ST_ERR_HEADER_LENGTH, 302)                                                                                       \
    X(ST_ERR_HEADER_UTF8, 303)                                                                                         \
    X(ST_ERR_HEADER_JSON, 304)                                                                                         \
    X(ST_ERR_HEADER_STRUCTURE, 305)                                                                                    \
    X(ST_ERR_HEADER_METADATA, 306)                                                                                     \
    X(ST_ERR_HEADER_DTYPE, 307)                                                                                        \
    X(ST_ERR_DUPLICATE_NAME, 308)                                                                                      \
    X(ST_ERR_DUPLICATE_METADATA, 309)                                                                                  \
    X(ST_ERR_NUL_IN_NAME, 310)                                                                                         \
    X(ST_ERR_OFFSETS_REVERSED, 311)                                                                                    \
    X(ST_ERR_OFFSETS_GAP, 312)                                                                                         \
    X(ST_ERR_OFFSETS_OVERLAP, 313)                                                                                     \
    X(ST_ERR_TENSOR_OVERFLOW, 314)                                                                                     \
    X(ST_ERR_TENSOR_PARTIAL_BYTE, 315)                                                                                 \
    X(ST_ERR_TENSOR_SIZE, 316)                                                                                         \
    X(ST_ERR_TRAILING_BYTES, 317)                                                                                      \
    X(ST_ERR_INDEX_TOO_LARGE, 400)                                                                                     \
    X(ST_ERR_INDEX_UTF8, 401)                                                                                          \
    X(ST_ERR_INDEX_JSON, 402)                                                                                          \
    X(ST_ERR_INDEX_STRUCTURE, 403)                                                                                     \
    X(ST_ERR_INDEX_DUPLICATE, 404)                                                                                     \
    X(ST_ERR_INDEX_MISMATCH, 405)                                                                                      \
    X(ST_ERR_SHARD_MISSING, 406)                                                                                       \
    X(ST_ERR_SHARD_OUTSIDE, 407)                                                                                       \
    X(ST_ERR_FOLDER_EMPTY, 408)                                                                                        \
    X(ST_ERR_FOLDER_AMBIGUOUS, 409)                                                                                    \
    X(ST_ERR_SHARD_TWICE, 410)                                                                                         \
    X(ST_ERR_CHECKSUM_MISSING, 500)                                                                                    \
    X(ST_ERR_CHECKSUM_MISMATCH, 501)                                                                                   \
    X(ST_ERR_CHECKSUM_MALFORMED, 502)                                                                                  \
    X(ST_ERR_RESERVED_NAME, 600)                                                                                       \
    X(ST_ERR_SEALED, 601)                                                                                              \
    X(ST_ERR_INCOMPLETE, 602)                                                                                          \
    X(ST_ERR_STAGING_FULL, 700)

/* Dtype, number, name, bits, and the code that DLPack has for it. */
#define DTYPES(X)                                                                                                      \
    X(ST_DTYPE_BOOL, 1, "BOOL", 8, 6)                                                                                  \
    X(ST_DTYPE_F4, 2, "F4", 4, 17)                                                                                     \
    X(ST_DTYPE_F6_E2M3, 3, "F6_E2M3", 6, 15)                                                                           \
    X(ST_DTYPE_F6_E3M2, 4, "F6_E3M2", 6, 16)                                                                           \
    X(ST_DTYPE_U8, 5, "U8", 8, 1)                                                                                      \
    X(ST_DTYPE_I8, 6, "I8", 8, 0)                                                                                      \
    X(ST_DTYPE_F8_E5M2, 7, "F8_E5M2", 8, 12)                                                                           \
    X(ST_DTYPE_F8_E4M3, 8, "F8_E4M3", 8, 10)                                                                           \
    X(ST_DTYPE_F8_E8M0, 9, "F8_E8M0", 8, 14)                                                                           \
    X(ST_DTYPE_F8_E4M3FNUZ, 10, "F8_E4M3FNUZ", 8, 11)                                                                  \
    X(ST_DTYPE_F8_E5M2FNUZ, 11, "F8_E5M2FNUZ", 8, 13)                                                                  \
    X(ST_DTYPE_I16, 12, "I16", 16, 0)                                                                                  \
    X(ST_DTYPE_U16, 13, "U16", 16, 1)                                                                                  \
    X(ST_DTYPE_F16, 14, "F16", 16, 2)                                                                                  \
    X(ST_DTYPE_BF16, 15, "BF16", 16, 4)                                                                                \
    X(ST_DTYPE_I32, 16, "I32", 32, 0)                                                                                  \
    X(ST_DTYPE_U32, 17, "U32", 32, 1)                                                                                  \
    X(ST_DTYPE_F32, 18, "F32", 32, 2)                                                                                  \
    X(ST_DTYPE_C64, 19, "C64", 64, 5)                                                                                  \
    X(ST_DTYPE_F64, 20, "F64", 64, 2)                                                                                  \
    X(ST_DTYPE_I64, 21, "I64", 64, 0)                                                                                  \
    X(ST_DTYPE_U64, 22, "U64", 64, 1)
