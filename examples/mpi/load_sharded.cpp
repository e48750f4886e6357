// Loads a checkpoint by several processes, each of which reads only its part of every tensor; then checks that no process has read more
// than that, and that the parts are the whole.
//
//   mpirun -np 4 load_sharded MODEL [split|layout]
//
// split:  dimension 0 is cut into one part per rank, as numpy.array_split does; a tensor shorter than that is read by all.
// layout: ranks form a matrix of devices, as in MindSpore: matrices are cut in both dimensions where they divide, otherwise in one;
//         everything else is read by all.

#define OMPI_SKIP_MPICXX // C++ bindings, which MPI has given up
#define MPICH_SKIP_MPICXX
#include <mpi.h>
#include <safetensors_lazy.h>

#include <algorithm>
#include <cinttypes>
#include <climits>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;
using Shape = std::vector<std::uint64_t>;
using Ranges = std::vector<st_range>;
static_assert(sizeof(st_range) == 2 * sizeof(std::uint64_t), "ranges travel as pairs of numbers");

static void check(st_status status, const st_error &err) {
    if (status != ST_OK)
        throw std::runtime_error(err.message);
}

struct Failed {}; // thrown on every rank, after one of them has said why

struct Job {
    int rank, world;

    // Works on every rank. If that fails on one, all learn of it here: nobody is left waiting for a rank that has given up.
    template <class Work> void everywhere(Work work) const {
        int first_failed = world;
        std::string why;
        try {
            work();
        } catch (const std::exception &error) {
            first_failed = rank;
            why = error.what();
        }
        MPI_Allreduce(MPI_IN_PLACE, &first_failed, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
        if (first_failed == rank)
            std::fprintf(stderr, "rank %d: %s\n", rank, why.c_str());
        if (first_failed < world)
            throw Failed();
    }
};

// --- loading --------------------------------------------------------------------------------------------------------------------------

// Narrows ranges, which select all of a tensor, to this rank's part.
using Cut = void(const st_tensor &, const Job &, st_range *ranges);

static void split(const st_tensor &tensor, const Job &job, st_range *ranges) {
    st_error err;
    if (tensor.rank > 0 && tensor.shape[0] >= std::uint64_t(job.world))
        check(st_split_range(tensor.shape[0], job.rank, job.world, ranges, &err), err);
}

static void layout(const st_tensor &tensor, const Job &job, st_range *ranges) {
    if (tensor.rank != 2)
        return;
    // Which axis of devices cuts which dimension, best first: 1 is the first axis, 0 the last, -1 none; that always divides.
    static const std::int64_t maps[][2] = {{1, 0}, {0, 1}, {0, -1}, {-1, 0}, {1, -1}, {-1, 1}, {-1, -1}};
    const std::uint64_t rows = job.world % 2 == 0 ? 2 : 1, devices[] = {rows, job.world / rows};
    st_layout layout = ST_LAYOUT_INIT;
    layout.device_matrix = devices;
    layout.device_dims = 2;
    layout.tensor_map_len = 2;
    st_error err;
    st_status status = ST_ERR_NOT_DIVISIBLE; // on all ranks or on none, so that all end with the same map
    for (std::size_t i = 0; status == ST_ERR_NOT_DIVISIBLE; ++i) {
        layout.tensor_map = maps[i];
        status = st_layout_ranges(&layout, tensor.shape, 2, job.rank, ranges, &err);
    }
    check(status, err);
}

// A rank's part of a tensor, which is seen as an array of bytes: the bytes of an element are its last dimension.
struct Part {
    st_tensor tensor;
    Shape shape; // of the whole tensor
    Ranges ranges;
    Bytes bytes;
};

static std::vector<Part> plan(const st_checkpoint *model, const Job &job, Cut cut) {
    std::vector<Part> parts(st_len(model));
    for (std::size_t i = 0; i < parts.size(); ++i) {
        auto &[tensor, shape, ranges, bytes] = parts[i];
        st_error err;
        check(st_tensor_info(model, i, &tensor, &err), err);
        shape.assign(tensor.shape, tensor.shape + tensor.rank);
        shape.push_back(st_dtype_bits(tensor.dtype) / 8);
        const bool divisible = shape.back() > 0;
        if (!divisible) // elements smaller than a byte: one could be cut inside
            shape = {tensor.nbytes};
        for (std::uint64_t length : shape)
            ranges.push_back({0, length});
        if (divisible)
            cut(tensor, job, ranges.data());
        std::uint64_t nbytes = 1;
        for (const st_range &range : ranges)
            nbytes *= range.stop - range.start;
        bytes.resize(nbytes);
    }
    return parts;
}

static void read_tensor(st_checkpoint *model, std::size_t index, const st_range *ranges, std::size_t rank, Bytes &bytes) {
    st_error err;
    check(st_tensor_read(model, index, ranges, rank, bytes.data(), bytes.size(), &err), err);
}

// Bytes that this process has got by read(2) and its like so far; 0 where the system does not tell.
static std::uint64_t bytes_from_files() {
    std::string key;
    std::uint64_t count = 0;
    std::ifstream("/proc/self/io") >> key >> count;
    return count;
}

// The most that st_tensor_read reads for a part: rows (elements of dimension 0) are whole, or have one gap each, which is read through if
// it is short.
static std::uint64_t bytes_to_read(const Part &part) {
    if (part.bytes.empty())
        return 0;
    const std::uint64_t rows = part.ranges[0].stop - part.ranges[0].start;
    const std::uint64_t whole = part.tensor.nbytes / part.shape[0], mine = part.bytes.size() / rows;
    return rows * (whole - mine <= std::min<std::uint64_t>(16 << 10, 64 * mine) ? whole : mine);
}

// --- the check ------------------------------------------------------------------------------------------------------------------------

struct Digest { // FNV-1a
    std::uint64_t value = 0xcbf29ce484222325;

    void add(const void *data, std::size_t nbytes) {
        for (const unsigned char *byte = static_cast<const unsigned char *>(data); nbytes > 0; ++byte, --nbytes)
            value = (value ^ *byte) * 0x100000001b3;
    }

    void add(const st_tensor &tensor) {
        add(tensor.name, tensor.name_len + 1);
        add(&tensor.dtype, sizeof tensor.dtype);
        add(&tensor.rank, sizeof tensor.rank);
        add(tensor.shape, tensor.rank * sizeof *tensor.shape);
    }
};

struct Findings {
    Digest alone, together;       // of the model: as rank 0 reads it alone, and as the parts make it
    std::uint64_t replicated = 0; // bytes of this rank that another has, too
};

// What a rank has of a window: of some rows (elements of dimension 0) of an array of bytes. MPI knows how to move it in and out.
class Block {
  public:
    int nbytes = 1;

    Block(const Shape &shape, st_range window, const st_range *ranges) {
        std::vector<int> sizes, lengths, starts;
        for (std::size_t d = 0; d < shape.size(); ++d) {
            const st_range all = d == 0 ? window : st_range{0, shape[d]};
            const std::uint64_t start = std::clamp(ranges[d].start, all.start, all.stop);
            const std::uint64_t stop = std::clamp(ranges[d].stop, all.start, all.stop);
            sizes.push_back(int(all.stop - all.start));
            lengths.push_back(int(stop - start));
            starts.push_back(int(start - all.start));
            nbytes *= lengths.back();
        }
        if (nbytes == 0) // a subarray may not be empty
            MPI_Type_contiguous(0, MPI_BYTE, &type_);
        else
            MPI_Type_create_subarray(int(sizes.size()), sizes.data(), lengths.data(), starts.data(), MPI_ORDER_C, MPI_BYTE, &type_);
        MPI_Type_commit(&type_);
    }
    Block(const Block &) = delete;
    ~Block() { MPI_Type_free(&type_); }

    void put(const unsigned char *block, Bytes &window) const {
        MPI_Sendrecv(block, nbytes, MPI_BYTE, 0, 0, window.data(), 1, type_, 0, 0, MPI_COMM_SELF, MPI_STATUS_IGNORE);
    }
    void take(const Bytes &window, Bytes &block) const {
        MPI_Sendrecv(window.data(), 1, type_, 0, 0, block.data(), nbytes, MPI_BYTE, 0, 0, MPI_COMM_SELF, MPI_STATUS_IGNORE);
    }

  private:
    MPI_Datatype type_;
};

// About what rank 0 gets at once: so it needs little memory, and MPI's counts suffice, however large a tensor is.
constexpr std::uint64_t GATHER_BYTES = 64 << 20;

static void check_tensor(const Job &job, st_checkpoint *model, std::size_t index, const Part &part, Findings &findings) {
    const st_tensor &tensor = part.tensor;
    const std::string name = '"' + std::string(tensor.name) + '"';
    const Shape &shape = part.shape;
    const std::size_t dims = shape.size();
    const int numbers = int(2 * dims);

    Ranges all(dims * job.world);
    MPI_Allgather(part.ranges.data(), numbers, MPI_UINT64_T, all.data(), numbers, MPI_UINT64_T, MPI_COMM_WORLD);
    auto ranges_of = [&](int rank) { return &all[dims * rank]; };
    int alike = 0;
    for (int r = 0; r < job.world; ++r)
        alike += std::memcmp(ranges_of(r), ranges_of(job.rank), dims * sizeof(st_range)) == 0;
    findings.replicated += alike > 1 ? part.bytes.size() : 0;
    findings.alone.add(tensor);
    findings.together.add(tensor);

    const std::uint64_t row = tensor.nbytes > 0 ? tensor.nbytes / shape[0] : 0;
    const std::uint64_t rows = row > 0 && dims > 1 ? std::max<std::uint64_t>(GATHER_BYTES / job.world / row, 1) : shape[0];
    job.everywhere([&] {
        if (rows * row > std::uint64_t(INT_MAX / job.world))
            throw std::runtime_error(name + ": " + std::to_string(rows * row) + " bytes in one row are more than MPI can gather");
    });

    bool complete = true, agree = true;
    const unsigned char *unsent = part.bytes.data();
    for (st_range window = {0, 0}; row > 0 && window.stop < shape[0];) {
        window = {window.stop, window.stop + std::min(rows, shape[0] - window.stop)};
        const std::size_t nbytes = job.rank == 0 ? (window.stop - window.start) * row : 0;
        Bytes bytes(nbytes), there(nbytes), ones(nbytes, 1), again(nbytes);
        job.everywhere([&] {
            if (job.rank == 0)
                read_tensor(model, index, &window, dims > 1 ? 1 : 0, again);
        });
        findings.alone.add(again.data(), nbytes);

        std::deque<Block> blocks;
        std::vector<int> counts, starts = {0};
        for (int r = 0; r < job.world; ++r) {
            counts.push_back(blocks.emplace_back(shape, window, ranges_of(r)).nbytes);
            starts.push_back(starts[r] + counts[r]);
        }
        Bytes inbox(job.rank == 0 ? starts.back() : 0);
        MPI_Gatherv(unsent, counts[job.rank], MPI_BYTE, inbox.data(), counts.data(), starts.data(), MPI_BYTE, 0, MPI_COMM_WORLD);
        unsent += counts[job.rank];
        if (job.rank != 0)
            continue;
        for (int r = 0; r < job.world; ++r) {
            blocks[r].put(inbox.data() + starts[r], bytes);
            blocks[r].put(ones.data(), there);
        }
        for (int r = 0; r < job.world; ++r) { // where ranks share elements, only the last one's are left
            blocks[r].take(bytes, again);
            agree &= std::memcmp(again.data(), inbox.data() + starts[r], counts[r]) == 0;
        }
        complete &= std::memchr(there.data(), 0, nbytes) == nullptr;
        findings.together.add(bytes.data(), nbytes);
    }
    job.everywhere([&] {
        if (!complete)
            throw std::runtime_error(name + ": some elements were read by no rank");
        if (!agree)
            throw std::runtime_error(name + ": ranks have read different bytes of the same elements");
        if (job.rank == 0 && findings.together.value != findings.alone.value)
            throw std::runtime_error(name + ": the parts together are not what rank 0 reads alone");
    });
}

// --- all of it ------------------------------------------------------------------------------------------------------------------------

static void report(const Job &job, std::uint64_t tensor_bytes, const std::vector<std::uint64_t> &mine) {
    const std::size_t columns = mine.size();
    std::vector<std::uint64_t> all(columns * job.world);
    MPI_Gather(mine.data(), int(columns), MPI_UINT64_T, all.data(), int(columns), MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (job.rank != 0)
        return;
    std::printf("rank  bytes of tensors  of these replicated  share of model  bytes from files\n");
    for (const std::uint64_t *row = all.data(); row != all.data() + all.size(); row += columns)
        std::printf("%4zu  %16" PRIu64 "  %19" PRIu64 "  %13.2f%%  %16" PRIu64 "\n", (row - all.data()) / columns, row[0], row[1],
                    tensor_bytes > 0 ? 100.0 * double(row[0]) / double(tensor_bytes) : 0, row[2]);
}

static void run(const Job &job, const char *path, Cut cut) {
    std::unique_ptr<st_checkpoint, decltype(&st_close)> model(nullptr, st_close);
    std::vector<Part> parts;
    Digest names;
    job.everywhere([&] {
        st_checkpoint *opened;
        st_error err;
        check(st_open(path, NULL, &opened, &err), err);
        model.reset(opened);
        parts = plan(opened, job, cut);
        for (const Part &part : parts)
            names.add(part.tensor);
    });
    std::uint64_t names_of_rank_0 = names.value;
    MPI_Bcast(&names_of_rank_0, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);

    std::uint64_t nbytes = 0, most = 0, from_files = bytes_from_files();
    job.everywhere([&] {
        if (names.value != names_of_rank_0) // ranks would meet in different collectives
            throw std::runtime_error(std::string(path) + ": these are not the tensors that rank 0 has");
        for (std::size_t i = 0; i < parts.size(); ++i) {
            auto &[tensor, shape, ranges, bytes] = parts[i];
            read_tensor(model.get(), i, ranges.data(), ranges.size() - 1, bytes); // all but the bytes of an element
            nbytes += bytes.size();
            most += bytes_to_read(parts[i]);
        }
        from_files = bytes_from_files() - from_files; // 0 if the system does not tell: then this is not checked
        if (from_files > most + nbytes / 50 + (64 << 10)) // some room for what MPI reads by the way
            throw std::runtime_error(std::string(path) + ": " + std::to_string(from_files) + " bytes were read from files for a part of " +
                                     std::to_string(nbytes) + ", which takes " + std::to_string(most) + " at most");
    });

    Findings findings;
    for (std::size_t i = 0; i < parts.size(); ++i)
        check_tensor(job, model.get(), i, parts[i], findings);
    st_info info;
    st_checkpoint_info(model.get(), &info);
    report(job, info.tensor_bytes, {nbytes, findings.replicated, from_files});
    if (job.rank == 0)
        std::printf("OK: %zu tensors of %" PRIu64 " bytes, digest %016" PRIx64 "\n", parts.size(), info.tensor_bytes,
                    findings.together.value);
}

// What is wrong with the command line; "" if nothing is.
static std::string wrong_argument(int argc, char **argv) {
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word.substr(0, 1) == "-")
            return "unknown option '" + word + "'";
        if (i == 2 && word != "split" && word != "layout")
            return "it must be split or layout, not '" + word + "'";
        if (i > 2)
            return "unexpected argument '" + word + "'";
    }
    return argc < 2 ? "no model is given" : "";
}

int main(int argc, char **argv) {
    static const char usage[] = "usage: load_sharded MODEL [split|layout]\n";
    MPI_Init(&argc, &argv);
    Job job;
    MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &job.world);
    // Ranks may have arguments of their own: all end if one cannot begin.
    int help = std::any_of(argv + 1, argv + argc, [](const char *word) { return std::strcmp(word, "--help") == 0; });
    MPI_Allreduce(MPI_IN_PLACE, &help, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (help) {
        if (job.rank == 0)
            std::fputs(usage, stdout);
        MPI_Finalize();
        return 0;
    }
    int status = 2;
    try {
        job.everywhere([&] {
            if (const std::string wrong = wrong_argument(argc, argv); !wrong.empty())
                throw std::runtime_error(wrong + "\n" + usage);
        });
        status = 1;
        run(job, argv[1], argc == 3 && std::strcmp(argv[2], "layout") == 0 ? layout : split);
        status = 0;
    } catch (const Failed &) {
        if (job.rank == 0 && status == 1)
            std::printf("FAILED\n");
    } catch (const std::exception &error) { // no memory, at a place where others wait for more than an outcome
        std::fprintf(stderr, "rank %d: %s\n", job.rank, error.what());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Finalize();
    return status;
}
