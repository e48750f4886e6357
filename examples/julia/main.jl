# Lists the tensors of a checkpoint, and reads one of them in place.

include("SafetensorsLazy.jl")
using .SafetensorsLazy

function main(path)
    open(Checkpoint, path) do model
        println(length(model), " tensors in ", path)
        listed = 10
        for name in Iterators.take(keys(model), listed)
            tensor = model[name]  # a pointer into the file; nothing is read yet
            println("  ", rpad(eltype(tensor), 8), rpad(join(size(tensor), "×"), 12), name)
        end
        length(model) > listed && println("  ... and ", length(model) - listed, " more")
        println(sum(name -> sizeof(model[name]), keys(model)), " bytes in all")

        for name in keys(model)
            tensor = model[name]
            if eltype(tensor) == Float32 && !isempty(tensor)
                println(name, " begins with ", tensor[1:min(end, 4)])  # only the page that is touched is read
                break
            end
        end
    end
end

const usage = "usage: julia main.jl model.safetensors"
if "--help" in ARGS
    println(usage)
    exit(0)
end
option = findfirst(word -> startswith(word, "-"), ARGS)
wrong = option !== nothing ? "unknown option '$(ARGS[option])'" :
        isempty(ARGS) ? "no model is given" :
        length(ARGS) > 1 ? "unexpected argument '$(ARGS[2])'" : nothing
if wrong !== nothing
    println(stderr, "main.jl: ", wrong, "\n", usage)
    exit(2)
end
try
    main(ARGS[1])
catch e
    e isa SafetensorsError || rethrow()
    println(stderr, e.message)
    exit(1)
end
