// Lists the tensors of a checkpoint, a single file or sharded, prints a few values read through mapped pointers, and shows how little memory that took.

#include <safetensors_lazy.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <unistd.h>

#include "arguments.hpp"

namespace st = safetensors_lazy;

// Memory of this process that is resident now, in bytes: shared file pages and its own.
static long resident_bytes() {
    long pages_total = 0, pages_resident = 0;
    std::ifstream("/proc/self/statm") >> pages_total >> pages_resident;
    return pages_resident * sysconf(_SC_PAGESIZE);
}

static std::string shape_of(const st::Tensor &tensor) {
    std::string text = "[";
    for (std::uint64_t length : tensor.shape())
        text += (text.size() > 1 ? ", " : "") + std::to_string(length);
    return text + "]";
}

static void print_tensor(const st::Tensor &tensor) {
    std::string name(tensor.name());
    std::printf("%6zu  %-64s %-5s %-16s %10zu bytes at %llu of file %zu\n", tensor.index(), name.c_str(), tensor.dtype_name(),
                shape_of(tensor).c_str(), tensor.nbytes(), static_cast<unsigned long long>(tensor.file_offset()), tensor.shard());
}

static void print_values(const st::Tensor &tensor) {
    std::cout << tensor.name() << " starts with";
    st::Span<const float> values = tensor.data<float>();
    for (std::size_t i = 0; i < std::min<std::size_t>(values.size(), 5); ++i)
        std::cout << ' ' << values[i];
    std::cout << '\n';
}

static const char usage[] = "model\n";

static std::string parse(int argc, char **argv) {
    for (int i = 1; i < argc; ++i)
        if (i > 1 || argv[i][0] == '-')
            refuse_argument(argv[i]);
    if (argc < 2)
        throw ArgumentError("no model is given");
    return argv[1];
}

int main(int argc, char **argv) {
    answer_help(argc, argv, usage);
    try {
        const std::string path = parse(argc, argv);
        long before = resident_bytes();
        st::Checkpoint model(path);
        for (st::Tensor tensor : model)
            print_tensor(tensor);
        for (auto [key, value] : model.metadata())
            std::cout << "metadata " << key << ": " << value << '\n';
        long opened = resident_bytes();

        // Three tensors of the F32 kind, from all over the files: only the pages of their first values are read.
        std::size_t step = std::max<std::size_t>(model.size() / 3, 1), printed = 0;
        for (std::size_t i = 0; i < model.size() && printed < 3; i += step) {
            if (st::Tensor tensor = model.at(i); tensor.dtype() == ST_DTYPE_F32) {
                print_values(tensor);
                ++printed;
            }
        }
        st_info info = model.info();
        const double MB = 1e6;
        std::printf("%zu tensors, %.1f MB of data in %zu file(s) of %.1f MB\n", model.size(), info.tensor_bytes / MB, model.shards(),
                    info.file_bytes / MB);
        std::printf("memory that became resident: %.2f MB to open and list, %.2f MB more to read values\n",
                    (opened - before) / MB, (resident_bytes() - opened) / MB);
    } catch (const st::Error &error) {
        std::cerr << error.status_name() << ": " << error.what() << '\n';
        return 1;
    } catch (const ArgumentError &error) {
        return refuse_arguments(error, argv, usage);
    }
}
