//! Every way to fail, with the file, the tensor and the numbers involved.

use crate::format::{ChecksumError, Dtype, HeaderError, IndexError, RankError, SliceError};
use crate::quote::Quoted;
use crate::storage::{LimitOn, StorageError};
use crate::writer::WriterError;
use std::fmt::{self, Display};

/// What went wrong, and where. Its `Display` is one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file is not a safetensors file, or damaged.
    Header {
        /// Path of the file; empty for memory.
        path: String,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A file's bytes could not be reached.
    Storage {
        /// Path of the file; empty for memory.
        path: String,
        /// The tensor whose bytes they are; `None` when it is the file as a whole.
        tensor: Option<String>,
        /// What happened.
        source: StorageError,
    },
    /// Ranges do not make a slice of a tensor.
    Slice {
        /// Path of the file; empty for memory.
        path: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with the ranges.
        source: SliceError,
    },
    /// The index of a sharded checkpoint is wrong by itself.
    Index {
        /// Path of the index.
        path: String,
        /// What is wrong with it.
        source: IndexError,
    },
    /// The index of a sharded checkpoint and a shard contradict each other.
    IndexMismatch {
        /// Path of the index.
        path: String,
        /// The tensor on which they differ.
        tensor: String,
        /// The shard that has, or lacks, the tensor.
        shard: String,
        /// In what way.
        mismatch: Mismatch,
    },
    /// Shards are not there, or an index.
    ShardMissing {
        /// Path of the index or folder that wants them.
        path: String,
        /// The first of them.
        shard: String,
        /// How many others are missing.
        more: u64,
        /// The first one is a symbolic link that leads nowhere.
        dangling: bool,
    },
    /// There are more shards than this process may have files open.
    TooFewDescriptors {
        /// Path of the index or folder.
        path: String,
        /// Number of shards.
        shards: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path of a shard is absolute or leads outside of the checkpoint's folder.
    ShardOutside {
        /// Path of the index or folder.
        path: String,
        /// The shard.
        shard: String,
        /// How it leads there.
        how: &'static str,
    },
    /// Two names of shards lead to the same file.
    SameFile {
        /// Path of the index or folder.
        path: String,
        /// The first name.
        first: String,
        /// The second name.
        second: String,
    },
    /// Two shards hold tensors of the same name.
    DuplicateName {
        /// The name.
        tensor: String,
        /// Path of the first shard.
        first: String,
        /// Path of the second shard.
        second: String,
    },
    /// A folder holds no checkpoint, or more than one.
    Folder {
        /// Path of the folder.
        path: String,
        /// What is wrong with it.
        source: FolderError,
    },
    /// A tensor does not fit into the budget beside what is in use.
    Budget {
        /// The tensor.
        tensor: String,
        /// Its size in bytes.
        needed: u64,
        /// What cannot be evicted, in bytes.
        in_use: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// A tensor is in use and cannot be evicted.
    InUse {
        /// The tensor.
        tensor: String,
    },
    /// A tensor is released more often than it was acquired.
    NotInUse {
        /// The tensor.
        tensor: String,
    },
    /// A tensor is acquired so often, without being released, that it cannot be counted.
    TooManyPins {
        /// The tensor.
        tensor: String,
    },
    /// The checksums of a file are missing, wrong, or not those of its bytes.
    Checksum {
        /// Path of the file; empty for memory.
        path: String,
        /// What is wrong with them.
        source: ChecksumError,
    },
    /// A tensor cannot be divided over ranks as asked.
    Rank(RankError),
    /// A checkpoint cannot be written.
    Writer {
        /// Path of the checkpoint.
        path: String,
        /// What is wrong.
        source: WriterError,
    },
    /// There is no tensor of that index.
    NoSuchTensor {
        /// The index.
        index: usize,
        /// Number of tensors in the checkpoint.
        len: usize,
    },
    /// The destination of a read is smaller than what is read.
    BufferTooSmall {
        /// The tensor.
        tensor: String,
        /// Size of what is read, in bytes.
        needed: u64,
        /// Size of the destination in bytes.
        given: u64,
    },
    /// A tensor has more dimensions than a view can hold.
    RankTooLarge {
        /// The tensor.
        tensor: String,
        /// Its number of dimensions.
        rank: usize,
        /// The most that fit.
        limit: usize,
    },
    /// A tensor cannot be expressed in the form asked for.
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// What it cannot be.
        what: &'static str,
    },
    /// The call's [`Task`](crate::Task), or the load, was cancelled.
    Cancelled,
    /// Nothing more of a load can arrive before staged memory is recycled.
    StagingFull {
        /// Staged memory that was delivered and not recycled, in bytes.
        held: u64,
        /// All of it.
        size: u64,
    },
    /// There was no memory for what is kept of all shards together.
    NoMemory,
    /// A state that cannot happen: a bug in this library.
    Internal {
        /// Which state.
        what: &'static str,
    },
    /// An argument is not one that the function takes.
    InvalidArgument {
        /// What is wrong with it.
        what: String,
    },
}

/// How an index and a shard contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The index names a tensor in a shard that lacks it.
    NotInShard,
    /// A shard holds a tensor that the index does not name.
    NotInIndex,
    /// A shard holds a tensor that the index names in another shard.
    InOtherShard,
}

/// Why a folder is not a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderError {
    /// There is neither an index nor a `.safetensors` file in it.
    Empty,
    /// The same, but there are in folders below it.
    OnlyBelow {
        /// The paths of some of these, from the folder on.
        folders: Vec<String>,
        /// How many others there are, as far as was looked.
        more: usize,
    },
    /// The same, but there is a file that is still being downloaded, or whose download was broken off.
    Unfinished {
        /// Its name.
        name: String,
    },
    /// There are several indices, or several files that are not the shards of one checkpoint.
    Ambiguous {
        /// Two that do not go together.
        candidates: [String; 2],
    },
}

impl Display for FolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FolderError::Empty => f.write_str("the directory has no index and no .safetensors file"),
            FolderError::OnlyBelow { folders, more } => {
                f.write_str("the directory has no index and no .safetensors file, but below it ")?;
                for (number, folder) in folders.iter().enumerate() {
                    let before = match number {
                        0 => "",
                        _ if *more == 0 && number + 1 == folders.len() => " and ",
                        _ => ", ",
                    };
                    write!(f, "{before}{}", Quoted(folder))?;
                }
                match *more {
                    0 => {}
                    more => write!(f, " and {more} more")?,
                }
                f.write_str(if folders.len() + more == 1 { " has: open that" } else { " have: open one of these" })
            }
            FolderError::Unfinished { name } => write!(
                f,
                "the directory has no index and no .safetensors file: {} is a download that was not finished",
                Quoted(name)
            ),
            FolderError::Ambiguous { candidates: [first, second] } => {
                write!(f, "the directory has both {} and {}: open the one that is meant", Quoted(first), Quoted(second))
            }
        }
    }
}

impl std::error::Error for FolderError {}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Header { path, source } => {
                write!(f, "{}{source}", In(path))?;
                match is_unfinished(path) && source.may_be_cut_off() {
                    true => f.write_str("; by its name it is a download that was not finished"),
                    false => Ok(()),
                }
            }
            Error::Storage { path, tensor: None, source } => write!(f, "{}{source}", In(path)),
            Error::Storage { path, tensor: Some(tensor), source } => {
                write!(f, "{}tensor {}: {source}", In(path), Quoted(tensor))
            }
            Error::Slice { path, tensor, source } => write!(f, "{}tensor {}: {source}", In(path), Quoted(tensor)),
            Error::Index { path, source } => write!(f, "{}{source}", In(path)),
            Error::IndexMismatch { path, tensor, shard, mismatch } => {
                let (tensor, shard) = (Quoted(tensor), Quoted(shard));
                match mismatch {
                    Mismatch::NotInShard => write!(f, "{}tensor {tensor} is not in {shard}, as it says", In(path)),
                    Mismatch::NotInIndex => write!(f, "{}it lacks tensor {tensor} of {shard}", In(path)),
                    Mismatch::InOtherShard => write!(f, "{}tensor {tensor} is in {shard}, not where it says", In(path)),
                }
            }
            Error::ShardMissing { path, shard, more, dangling } => {
                write!(f, "{}{}", In(path), Quoted(shard))?;
                match more {
                    0 => f.write_str(" is missing")?,
                    more => write!(f, " and {more} more are missing")?,
                }
                match dangling {
                    true => f.write_str(": it is a symbolic link that leads nowhere"),
                    false => Ok(()),
                }
            }
            Error::TooFewDescriptors { path, shards, source } => {
                write!(f, "{}{shards} shards need {shards} open files: {source}{}", In(path), LimitOn(source))
            }
            Error::ShardOutside { path, shard, how } => write!(f, "{}{} {how}", In(path), Quoted(shard)),
            Error::SameFile { path, first, second } => {
                write!(f, "{}{} and {} are the same file", In(path), Quoted(first), Quoted(second))
            }
            Error::DuplicateName { tensor, first, second } => {
                write!(f, "tensor {} is in {} and in {}", Quoted(tensor), Quoted(first), Quoted(second))
            }
            Error::Folder { path, source } => write!(f, "{}{source}", In(path)),
            Error::Budget { tensor, needed, in_use, budget } => write!(
                f,
                "tensor {} of {needed} bytes does not fit the budget of {budget} beside {in_use} bytes in use",
                Quoted(tensor)
            ),
            Error::InUse { tensor } => write!(f, "tensor {} is in use", Quoted(tensor)),
            Error::NotInUse { tensor } => write!(f, "tensor {} is not in use: it cannot be released", Quoted(tensor)),
            Error::TooManyPins { tensor } => write!(f, "tensor {} is in use 2^31 times", Quoted(tensor)),
            Error::Checksum { path, source } => write!(f, "{}{source}", In(path)),
            Error::Rank(source) => write!(f, "{source}"),
            Error::Writer { path, source } => write!(f, "{}{source}", In(path)),
            Error::NoSuchTensor { index, len } => write!(f, "there is no tensor {index} among {len}"),
            Error::BufferTooSmall { tensor, needed, given } => {
                write!(f, "tensor {} needs {needed} bytes, the destination has {given}", Quoted(tensor))
            }
            Error::RankTooLarge { tensor, rank, limit } => {
                write!(f, "tensor {} has {rank} dimensions, a view holds at most {limit}", Quoted(tensor))
            }
            Error::Unsupported { tensor, dtype, what } => {
                write!(f, "tensor {} of {dtype} cannot be {what}", Quoted(tensor))
            }
            Error::Cancelled => f.write_str("cancelled"),
            Error::StagingFull { held, size } => {
                write!(
                    f,
                    "nothing more can arrive before staged memory is recycled: {held} of its {size} bytes are in use"
                )
            }
            Error::NoMemory => f.write_str("no memory for the directory of the checkpoint"),
            Error::Internal { what } => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
            Error::InvalidArgument { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Header { source, .. } => Some(source),
            Error::Storage { source, .. } => Some(source),
            Error::Slice { source, .. } => Some(source),
            Error::Index { source, .. } => Some(source),
            Error::Folder { source, .. } => Some(source),
            Error::Checksum { source, .. } => Some(source),
            Error::Rank(source) => Some(source),
            Error::Writer { source, .. } => Some(source),
            Error::TooFewDescriptors { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Whether the name of a file says that it is being downloaded: by huggingface_hub, browsers, curl, wget and aria2's like.
pub(crate) fn is_unfinished(path: &str) -> bool {
    [".incomplete", ".part", ".partial", ".crdownload", ".download"].iter().any(|end| path.ends_with(end))
}

/// The file that a message is about, in front of it. Memory has no name.
struct In<'a>(&'a str);

impl Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            path => write!(f, "{}: ", Quoted(path)),
        }
    }
}
