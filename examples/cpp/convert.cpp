// Writes a checkpoint anew: in one file or in shards, aligned, with checksums. Its bytes go straight from the mapping of the old one to
// the new one. That takes the place of what was there all at once, which may also be the old one itself.

#include <safetensors_lazy.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unistd.h>

#include "arguments.hpp"
#include "watch.hpp"

namespace st = safetensors_lazy;

static const char usage[] =
    "[option]... FROM TO\n"
    "  --shard-size SIZE   shards of at most so many bytes of tensors: 5GB, 500MiB, 1000000\n"
    "  --align BYTES       let the data of each file begin at a multiple of it\n"
    "  --crc, --sha256, --blake3\n"
    "                      write checksums: MindSpore's, ModelSpec's, those of each tensor\n"
    "  --insertion-order   keep the order of the tensors\n"
    "  --no-sync           do not wait for the disk\n"
    "  --verify            verify FROM, if it has checksums, and compare TO with it\n"
    "FROM is a file, an index or a folder. TO is a file; if there are to be several, they and their index are named after it.\n";

struct Job {
    std::string from, to;
    st::WriterOptions options;
    bool verify = false;
};

static Job parse(int argc, char **argv) {
    Job job;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const auto value = [&] { return size_of(word, ++i < argc ? argv[i] : ""); };
        if (word == "--shard-size")
            job.options.max_shard_bytes = value();
        else if (word == "--align")
            job.options.alignment = static_cast<std::uint32_t>(std::min<std::uint64_t>(value(), UINT32_MAX));
        else if (word == "--crc")
            job.options.flags |= ST_WRITE_CRC;
        else if (word == "--sha256")
            job.options.flags |= ST_WRITE_SHA256;
        else if (word == "--blake3")
            job.options.flags |= ST_WRITE_BLAKE3;
        else if (word == "--insertion-order")
            job.options.flags |= ST_WRITE_INSERTION_ORDER;
        else if (word == "--no-sync")
            job.options.flags |= ST_WRITE_NO_SYNC;
        else if (word == "--verify")
            job.verify = true;
        else if (word.substr(0, 1) == "-" || !job.to.empty())
            refuse_argument(word);
        else
            (job.from.empty() ? job.from : job.to) = word;
    }
    if (job.to.empty())
        throw ArgumentError(job.from.empty() ? "FROM and TO are missing" : "TO is missing");
    return job;
}

// Throws if the checkpoint is damaged. Without checksums nobody can tell.
static void verify(const st::Checkpoint &model, const std::string &name) {
    const st::Task task;
    st::VerifyOptions options;
    options.task = &task;
    const Watch watch(task, "verifying");
    try {
        model.verify(options).check();
    } catch (const st::Error &error) {
        if (error.status() != ST_ERR_CHECKSUM_MISSING)
            throw;
        std::cerr << name << " has no checksums, or not in all files\n";
    }
}

// Whether a tensor can be had in place. Where it cannot, Tensor::data makes a copy that stays as long as the checkpoint.
static bool is_in_place(const st::Checkpoint &model, const st::Tensor &tensor) {
    return model.info().storage == ST_STORAGE_MMAP && tensor.alignment() * 8 >= st_dtype_bits(tensor.dtype());
}

// True of what is said of other bytes, or of the same in other places: of the tensors of one shard, or in their order.
static bool is_stale(std::string_view key) {
    return key == "crc_num" || key == "modelspec.hash_sha256" || key == "safetensors_lazy.blake3";
}

static void write(const st::Checkpoint &from, const Job &job) {
    const st::Task task;
    st::WriterOptions options = job.options;
    options.task = &task;
    const Watch watch(task, "writing"); // before the first temporary file, which Ctrl-C has to find
    st::Writer writer(job.to, options);
    for (const auto &[key, value] : from.metadata())
        if (!is_stale(key))
            writer.metadata(key, value);
    for (st::Tensor tensor : from) {
        if (is_in_place(from, tensor))
            writer.add(tensor);
        else
            writer.declare(tensor.name(), tensor.dtype(), tensor.shape());
    }
    for (st::Tensor tensor : from) {
        if (is_in_place(from, tensor))
            continue;
        watch.check();
        {
            const st::Pin pin = tensor.pin();
            writer.write(tensor.name(), pin.bytes());
        }
        tensor.evict(); // one at a time
    }
    writer.finish();
}

// Throws unless both have the same tensors.
static void compare(const st::Checkpoint &from, const st::Checkpoint &to) {
    bool same = from.size() == to.size();
    for (st::Tensor tensor : from) {
        const st::Tensor copy = to[tensor.name()];
        same = same && copy.dtype() == tensor.dtype() && copy.nbytes() == tensor.nbytes() &&
               std::equal(copy.shape().begin(), copy.shape().end(), tensor.shape().begin(), tensor.shape().end());
        if (same && tensor.nbytes() > 0) {
            const st::Pin before = tensor.pin(), after = copy.pin();
            same = std::memcmp(before.data(), after.data(), tensor.nbytes()) == 0;
        }
        if (!same)
            throw std::runtime_error("tensor " + std::string(tensor.name()) + " is not what it was");
        tensor.evict();
        copy.evict();
    }
}

static void convert(Job job) {
    const st::Checkpoint from(job.from);
    if (job.verify)
        verify(from, job.from);
    if (const std::uint64_t conflicts = from.info().metadata_conflicts)
        std::cerr << conflicts << " metadata entries of later shards have other values than those of the first: they are left out\n";

    // An index is named after its checkpoint. One file also takes the place of shards and their index: it is a shard without a limit.
    const std::string index = ".index.json";
    if (job.to.size() > index.size() && job.to.compare(job.to.size() - index.size(), index.size(), index) == 0)
        job.to.resize(job.to.size() - index.size());
    if (job.options.max_shard_bytes == 0)
        job.options.max_shard_bytes = UINT64_MAX;
    write(from, job);

    std::string path = job.to;
    const std::string suffix = ".safetensors";
    if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0)
        path += suffix;
    path += index;
    const st::Checkpoint to(access(path.c_str(), F_OK) == 0 ? path : job.to);
    if (job.verify) {
        if (job.options.flags & (ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3))
            verify(to, job.to);
        compare(from, to);
    }
    std::cout << to.size() << " tensors, " << std::fixed << std::setprecision(2) << double(to.info().tensor_bytes) / 1e6
              << " MB, in " << to.shards() << " file(s):";
    for (std::size_t shard = 0; shard < to.shards(); ++shard)
        std::cout << ' ' << to.shard_path(shard);
    std::cout << '\n';
}

int main(int argc, char **argv) {
    answer_help(argc, argv, usage);
    try {
        convert(parse(argc, argv));
    } catch (const st::Error &error) {
        std::cerr << error.status_name() << ": " << error.what() << '\n';
        return 1;
    } catch (const std::runtime_error &error) {
        std::cerr << error.what() << '\n';
        return 1;
    } catch (const ArgumentError &error) {
        return refuse_arguments(error, argv, usage);
    }
}
