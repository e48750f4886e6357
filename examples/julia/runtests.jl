# Run with JULIA_NUM_THREADS=4 to let the last test use threads.

include("SafetensorsLazy.jl")
using .SafetensorsLazy
using Test

directory = mktempdir()

"Makes a file of a header and its data, and returns its path."
function write_file(header, data)
    path, io = mktemp(directory; cleanup = false)
    write(io, UInt64(sizeof(header)), header, data)
    close(io)
    path
end

bytes(values...) = Vector{UInt8}(reinterpret(UInt8, collect(values)))

# One tensor of each kind; the header's length decides whether the data is aligned.
const HEADER = """
    {"matrix":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
     "scalar":{"dtype":"F64","shape":[],"data_offsets":[24,32]},
     "empty":{"dtype":"I16","shape":[0,7],"data_offsets":[32,32]},
     "größe":{"dtype":"BF16","shape":[2],"data_offsets":[32,36]},
     "flags":{"dtype":"BOOL","shape":[2],"data_offsets":[36,38]},
     "fours":{"dtype":"F4","shape":[2,2],"data_offsets":[38,40]},
     "eights":{"dtype":"F8_E4M3","shape":[1,1,1],"data_offsets":[40,41]}}"""
const DATA = [bytes(0f0, 1f0, 2f0, 3f0, 4f0, 5f0); bytes(0.5); bytes(0x3f80, 0x4000); 0x01; 0x00; 0x12; 0x34; 0x38]

@testset "values, padded by $padding" for padding in 0:7
    path = write_file(HEADER * " "^padding, DATA)
    open(Checkpoint, path) do model
        @test length(model) == 7
        @test keys(model) == ["matrix", "scalar", "empty", "größe", "flags", "fours", "eights"]
        @test model["matrix"] isa Tensor{Float32,2}
        @test model["matrix"] == Float32[0 3; 1 4; 2 5]
        @test model["matrix"][:, 2] == [3, 4, 5]
        @test sizeof(model["matrix"]) == 24
        @test model["scalar"] isa Tensor{Float64,0} && model["scalar"][] == 0.5
        @test model["empty"] isa Tensor{Int16,2} && size(model["empty"]) == (7, 0)
        @test model["größe"] == UInt16[0x3f80, 0x4000]
        @test model["flags"] == [true, false]
        @test model["fours"] == UInt8[0x12, 0x34]
        @test model["eights"] isa Tensor{UInt8,3} && model["eights"][1] == 0x38
    end
end

@testset "names" begin
    open(Checkpoint, write_file(HEADER, DATA)) do model
        @test haskey(model, "größe")
        @test haskey(model, SubString("my matrix", 4))
        for absent in ("absent", "matri", "matrix\0", "")
            @test !haskey(model, absent)
            @test_throws KeyError model[absent]
        end
    end
end

@testset "arrays are in place and read-only" begin
    model = open(Checkpoint, write_file(HEADER * " "^8, DATA))
    @test pointer(model["matrix"]) == pointer(model["matrix"])
    @test_throws ErrorException model["matrix"][1] = 1
    copied = Array(model["matrix"])
    copied[1] = 7
    @test copied[1] == 7 && model["matrix"][1] == 0
    @test model["matrix"]' * Float32[1, 1, 1] == [3, 12]
end

@testset "a tensor outlives its checkpoint" begin
    path = write_file(HEADER, DATA)
    matrix = open(model -> model["matrix"], Checkpoint, path)
    row = view(open(Checkpoint, path)["matrix"], :, 1)
    rm(path)
    foreach(_ -> GC.gc(), 1:3)
    @test sum(matrix) == 15
    @test row == [0, 1, 2]
end

@testset "after close" begin
    model = open(Checkpoint, write_file(HEADER, DATA))
    @test string(model) == "Checkpoint(7 tensors)"
    close(model)
    close(model)
    @test string(model) == "Checkpoint(closed)"
    @test_throws ArgumentError length(model)
    @test_throws ArgumentError keys(model)
    @test_throws ArgumentError model["matrix"]
end

"What opening a path throws."
function failure(path)
    try
        open(Checkpoint, path)
        nothing
    catch e
        e
    end
end

@testset "missing and bad files" begin
    missing_file = failure(joinpath(directory, "absent"))
    @test missing_file isa SafetensorsError
    @test missing_file.name == "ST_ERR_IO" && missing_file.errno == Base.Libc.ENOENT
    @test occursin("absent", sprint(showerror, missing_file))
    @test failure("/dev/null").name == "ST_ERR_NOT_A_FILE"
    @test failure(write_file(HEADER, DATA[1:end-1])).name == "ST_ERR_TRUNCATED"
    @test failure(write_file("not JSON", UInt8[])).name == "ST_ERR_HEADER_JSON"
    @test_throws ArgumentError open(Checkpoint, "a\0b")
end

@testset "many threads" begin
    model = open(Checkpoint, write_file(HEADER * " ", DATA))  # misaligned, so that the threads also race for copies
    sums = zeros(1000)
    Threads.@threads for i in eachindex(sums)
        sums[i] = sum(model["matrix"])
    end
    @test all(==(15), sums)
end
