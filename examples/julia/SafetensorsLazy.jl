"""
Opens `.safetensors` checkpoints and gives their tensors as arrays, without copying them:

    open(Checkpoint, "model.safetensors") do model
        model["lm_head.weight"]
    end

The file's dimensions go from the outermost to the innermost; Julia's arrays are column-major. So an array has the
dimensions of its tensor in reverse: what Python calls a 30522×384 matrix is a 384×30522 one here, and row `i` there is
column `i + 1` here.
"""
module SafetensorsLazy

export Checkpoint, SafetensorsError, Tensor

const LIB = get(ENV, "SAFETENSORS_LAZY_LIB", "libsafetensors_lazy.so.1")

# The structs of safetensors_lazy.h.

struct RawError
    status::Int32
    os_error::Int32
    message::NTuple{504,UInt8}
end

struct RawTensor
    name::Ptr{UInt8}
    name_len::Csize_t
    dtype::Int32
    rank::UInt32
    shape::Ptr{UInt64}
    nbytes::Csize_t
    shard::Csize_t
    file_offset::UInt64
    alignment::UInt64
end

"""
What the library reports. `status` is a number of `ST_ERR_*` in safetensors_lazy.h and `name` its name; `errno` is that of the
operating system if it refused, otherwise 0.
"""
struct SafetensorsError <: Exception
    status::Int
    name::String
    errno::Int
    message::String
end

function SafetensorsError(raw::RawError)
    name = unsafe_string(ccall((:st_status_name, LIB), Ptr{UInt8}, (Int32,), raw.status))
    message = String(collect(Iterators.takewhile(!iszero, raw.message)))
    SafetensorsError(raw.status, name, raw.os_error, message)
end

Base.showerror(io::IO, e::SafetensorsError) = print(io, e.message, " (", e.name, ")")

"An open checkpoint. `close` it, or leave that to the garbage collector."
mutable struct Checkpoint
    handle::Ptr{Cvoid}
    Checkpoint(handle::Ptr{Cvoid}) = finalizer(close, new(handle))
end

# Lets `ccall` take a Checkpoint itself, which then cannot be collected during the call.
function Base.unsafe_convert(::Type{Ptr{Cvoid}}, c::Checkpoint)
    c.handle == C_NULL && throw(ArgumentError("the checkpoint is closed"))
    c.handle
end

"""
    open(Checkpoint, path)
    open(f, Checkpoint, path)

Opens a checkpoint, which reads no tensor; with `f`, closes it when `f` returns. Arrays stay valid after that.
"""
function Base.open(::Type{Checkpoint}, path::AbstractString)
    handle = Ref(C_NULL)
    err = Ref{RawError}()
    status = ccall((:st_open, LIB), Int32, (Cstring, Ptr{Cvoid}, Ref{Ptr{Cvoid}}, Ref{RawError}), path, C_NULL, handle, err)
    status == 0 || throw(SafetensorsError(err[]))
    Checkpoint(handle[])
end

function Base.close(c::Checkpoint)
    ccall((:st_close, LIB), Cvoid, (Ptr{Cvoid},), c.handle)
    c.handle = C_NULL
    nothing
end

Base.length(c::Checkpoint) = Int(ccall((:st_len, LIB), Csize_t, (Ptr{Cvoid},), c))

"The names of all tensors, in the order of the file's header."
function Base.keys(c::Checkpoint)
    names = ccall((:st_keys, LIB), Ptr{Ptr{UInt8}}, (Ptr{Cvoid}, Ptr{Csize_t}), c, C_NULL)
    GC.@preserve c [unsafe_string(unsafe_load(names, i)) for i in 1:length(c)]
end

# The index of a tensor, or nothing.
function find(c::Checkpoint, name::AbstractString)
    index = Ref{Csize_t}()
    name = String(name)
    status = ccall((:st_find_n, LIB), Int32, (Ptr{Cvoid}, Ptr{UInt8}, Csize_t, Ref{Csize_t}), c, name, sizeof(name), index)
    status == 0 ? index[] : nothing
end

Base.haskey(c::Checkpoint, name::AbstractString) = find(c, name) !== nothing

Base.show(io::IO, c::Checkpoint) =
    print(io, "Checkpoint(", c.handle == C_NULL ? "closed" : "$(length(c)) tensors", ")")

"""
A tensor of a checkpoint: a read-only array in the file's mapping. It keeps the mapping, also when its checkpoint is closed.
`Array(tensor)` makes a copy to write to.
"""
struct Tensor{T,N} <: DenseArray{T,N}
    elements::Array{T,N}
    checkpoint::Checkpoint
end

Base.size(t::Tensor) = size(t.elements)
Base.IndexStyle(::Type{<:Tensor}) = IndexLinear()
Base.@propagate_inbounds Base.getindex(t::Tensor, i::Int) = t.elements[i]
Base.sizeof(t::Tensor) = sizeof(t.elements)
# These three are what BLAS needs.
Base.strides(t::Tensor) = strides(t.elements)
Base.elsize(::Type{<:Tensor{T}}) where {T} = sizeof(T)
Base.unsafe_convert(::Type{Ptr{T}}, t::Tensor{T}) where {T} = Base.unsafe_convert(Ptr{T}, t.elements)

# Julia has no type for the small floats: those of 8 and 16 bits are given as bit patterns, smaller ones as packed bytes.
const TYPES = Dict(
    "BOOL" => Bool, "U8" => UInt8, "I8" => Int8, "U16" => UInt16, "I16" => Int16, "U32" => UInt32, "I32" => Int32,
    "U64" => UInt64, "I64" => Int64, "F16" => Float16, "F32" => Float32, "F64" => Float64, "C64" => ComplexF32,
    "BF16" => UInt16,
)

"""
    model[name]

The tensor of that name, its dimensions in reverse. F8 and BF16 are `UInt8` and `UInt16`; tensors of F4 and F6 are
vectors of bytes.
"""
function Base.getindex(c::Checkpoint, name::AbstractString)
    # The tensor gets a reference of its own. Taken first, it also keeps what the calls below point to.
    checkpoint = Checkpoint(ccall((:st_retain, LIB), Ptr{Cvoid}, (Ptr{Cvoid},), c))
    index = find(checkpoint, name)
    index === nothing && throw(KeyError(name))
    info = Ref{RawTensor}()
    data = Ref(C_NULL)
    err = Ref{RawError}()
    status = ccall((:st_tensor_info, LIB), Int32, (Ptr{Cvoid}, Csize_t, Ref{RawTensor}, Ref{RawError}),
                   checkpoint, index, info, err)
    status == 0 || throw(SafetensorsError(err[]))
    status = ccall((:st_tensor_ptr, LIB), Int32, (Ptr{Cvoid}, Csize_t, Ref{Ptr{Cvoid}}, Ptr{Csize_t}, Ref{RawError}),
                   checkpoint, index, data, C_NULL, err)
    status == 0 || throw(SafetensorsError(err[]))

    GC.@preserve checkpoint begin
        dims = Tuple(Int(unsafe_load(info[].shape, i)) for i in info[].rank:-1:1)
    end
    bits = ccall((:st_dtype_bits, LIB), UInt32, (Int32,), info[].dtype)
    if bits < 8
        dims = (Int(info[].nbytes),)
    end
    type = get(TYPES, unsafe_string(ccall((:st_dtype_name, LIB), Ptr{UInt8}, (Int32,), info[].dtype)), UInt8)
    Tensor(unsafe_wrap(Array, Ptr{type}(data[]), dims), checkpoint)
end

end
