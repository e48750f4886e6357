//! Writing a checkpoint: a file, or shards and their index, which appear all at once.
//!
//! ```text
//! entries    what was added: tensors by name, metadata
//! dealer     which shard a tensor goes to
//! layout     where everything lies; fixed by the first piece, or by finish
//! target     what the files are called, and their folder
//! shard      a file while it is written
//! data       its bytes, wherever they are
//! fill       writing large amounts, several blocks at once
//! in_order   writing from front to back, where nothing else can be had
//! checksums  of what was written, for the metadata
//! finish     from what was added to complete files
//! plan       from complete files to steps
//! publish    the steps to a checkpoint
//! ```

mod checksums;
mod data;
mod dealer;
mod entries;
mod error;
mod fill;
mod finish;
mod in_order;
mod layout;
mod options;
mod plan;
mod publish;
mod shard;
mod target;

pub use error::{Found, WriterError};
pub use options::{Checksums, WriterOptions};

use crate::error::Error;
use crate::format::encode::{metadata_text_len, tensor_text_len, Described};
use crate::format::{bits_of, shape_text, Dtype, MAX_HEADER_LEN};
use crate::quote::excerpt;
use crate::storage::output::Temporary;
use crate::storage::StorageError;
use data::Data;
use dealer::{Dealer, Refused};
use entries::{Entries, Metadata, Source};
use in_order::is_in_order;
use layout::Layout;
use shard::Shard;
use std::ffi::CString;
use std::io;
use std::path::Path;
use target::Target;

/// The name that is none of a tensor's.
const METADATA: &str = "__metadata__";

/// Writes a checkpoint. Until [`Writer::finish`] there is nothing under its path but what was there before.
///
/// Tensors come in two ways: [`Writer::add`] borrows their bytes until the writer goes, and [`Writer::declare`] announces them, for
/// [`Writer::write`] to bring them piece by piece. The first piece fixes where everything lies: all tensors and all metadata have
/// to be known by then.
///
/// For the same tensors and metadata the file is, byte for byte, what `safetensors::serialize_to_file` writes.
///
/// ```
/// use safetensors_lazy::{Checkpoint, Dtype, OpenOptions, Writer, WriterOptions};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let bias = [0u8; 8];
/// let mut writer = Writer::create(&path, WriterOptions::default())?;
/// writer.metadata("format", "pt")?;
/// writer.add("bias", Dtype::F32, &[2], &bias)?;
/// writer.declare("weight", Dtype::BF16, &[2, 3])?;
/// writer.write("weight", &[1; 8])?;
/// writer.write("weight", &[2; 4])?;
/// writer.finish()?;
/// assert_eq!(Checkpoint::open(&path, OpenOptions::default())?.len(), 2);
/// # Ok::<(), safetensors_lazy::Error>(())
/// ```
#[derive(Debug)]
pub struct Writer<'d> {
    target: Target,
    options: WriterOptions,
    alignment: u64,
    entries: Entries<'d>,
    metadata: Metadata,
    dealer: Dealer,
    /// A temporary file that was made at once, to find out early whether it can be: the first that is needed.
    first: Option<Temporary>,
    /// Whether files that are made must not be more open than those that they will replace.
    is_private: bool,
    stage: Stage,
    layout: Layout,
    shards: Vec<Shard>,
    /// The permissions of files whose names are new.
    mode: Option<u32>,
    /// The temporary files of indices, while they are published.
    indices: Vec<Temporary>,
    /// Whether it is published by way of an index, in this try or an earlier one.
    is_by_index: bool,
    /// Old shards that no index will name any more.
    obsolete: Vec<CString>,
    /// What a reader finds.
    found: Found,
    /// Whether files may have come to their places, or an index name the temporary ones.
    has_begun: bool,
}

/// How far a writer is.
#[derive(Debug)]
enum Stage {
    /// Tensors and metadata can be added.
    Open,
    /// Where everything lies is fixed, or will be when there is memory to find it out.
    Sealed,
    /// All files are there, in their full length.
    Prepared,
    /// All files are complete, and the disk has them.
    Written,
    /// A sync has failed. Later ones would succeed, since the system tells of an error once, and would mean nothing.
    Broken {
        action: &'static str,
        os_error: i32,
    },
    Finished,
}

impl<'d> Writer<'d> {
    /// Begins a checkpoint at `path`, which must lie in a folder that exists. What is there now is left alone until
    /// [`Writer::finish`]; temporary files that dead writers of the same path have left behind are removed.
    ///
    /// A symbolic link at `path` is replaced itself, and not what it leads to.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: the folder is absent or not writable; there is something at `path` that is no file.
    /// [`Error::InvalidArgument`]: the path does not end with the name of a file; the alignment is none.
    pub fn create(path: impl AsRef<Path>, options: WriterOptions) -> Result<Writer<'d>, Error> {
        let alignment = options.checked_alignment()?;
        let target = Target::open(path.as_ref(), options.max_shard_bytes > 0)?;
        let storage = |source| target.storage_error(source);
        let replaced = target.common_mode().and_then(|common| Ok(common.or(target.mode_of(&target.name)?)));
        let is_private = replaced.map_err(storage)?.is_some();
        let first = Some(Temporary::create(&target.folder, &target.temporaries, is_private).map_err(storage)?);
        Ok(Writer {
            dealer: Dealer::new(options.max_shard_bytes),
            target,
            options,
            alignment,
            entries: Entries::default(),
            metadata: Metadata::default(),
            first,
            is_private,
            stage: Stage::Open,
            layout: Layout { starts: Vec::new(), numbers: Vec::new() },
            shards: Vec::new(),
            mode: None,
            indices: Vec::new(),
            is_by_index: false,
            obsolete: Vec::new(),
            found: Found::Old,
            has_begun: false,
        })
    }

    /// Adds an entry to the metadata of each file. Entries keep their order.
    ///
    /// Whoever copies the metadata of another checkpoint must leave its checksums out, which are not those of what is written here:
    /// [`CRC_KEY`](crate::format::CRC_KEY), [`SHA256_KEY`](crate::format::SHA256_KEY), [`BLAKE3_KEY`](crate::format::BLAKE3_KEY). They are
    /// taken as they are given, and with wrong ones the file looks damaged.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: key or value is not UTF-8, the key has a NUL or is there already, a header would be too large, or it is too
    /// late to add anything.
    pub fn metadata(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.check_process()?;
        let done = self.open_for("metadata").and_then(|()| {
            let (key, value) = (name(key.as_ref(), "key")?, utf8(value.as_ref(), "value")?);
            if checksums::is_reserved(self.options.checksums, key) {
                return Err(WriterError::DuplicateMetadata { key: key.to_owned() });
            }
            let added = metadata_text_len(key, value);
            let header_len = self.dealer.longest_text().saturating_add(self.metadata.text_len()).saturating_add(added);
            if header_len > MAX_HEADER_LEN as u64 {
                return Err(WriterError::HeaderTooLarge { header_len });
            }
            self.metadata.push(key, value)
        });
        done.map_err(|source| self.error(source))
    }

    /// Adds a tensor whose bytes are all here. They are read by [`Writer::finish`].
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: the name is not UTF-8, has a NUL, is `__metadata__` or there already; `data` is not as long as dtype and
    /// shape need; elements of 4 or 6 bits do not fill bytes; the file or its header would be too large; it is too late.
    pub fn add(&mut self, name: impl AsRef<[u8]>, dtype: Dtype, shape: &[u64], data: &'d [u8]) -> Result<(), Error> {
        self.check_process()?;
        self.push(name.as_ref(), dtype, shape, Some(data)).map_err(|source| self.error(source))
    }

    /// Announces a tensor whose bytes [`Writer::write`] will bring.
    ///
    /// # Errors
    ///
    /// As for [`Writer::add`].
    pub fn declare(&mut self, name: impl AsRef<[u8]>, dtype: Dtype, shape: &[u64]) -> Result<(), Error> {
        self.check_process()?;
        self.push(name.as_ref(), dtype, shape, None).map_err(|source| self.error(source))
    }

    /// Brings the next bytes of a tensor that was declared. Tensors may be written in any order, and in turns. From the first piece on
    /// nothing can be added any more. A piece that fails was not brought, and may be given again.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: no such tensor was declared, or it has no room for so many bytes. [`Error::Storage`]: the disk is full, or
    /// failed.
    pub fn write(&mut self, name: impl AsRef<[u8]>, piece: &[u8]) -> Result<(), Error> {
        self.check_process()?;
        let (tensor, shard, written) = self.expect(name.as_ref(), piece.len() as u64).map_err(|e| self.error(e))?;
        self.prepare()?;
        let internal = || self.error(WriterError::Internal("a tensor has no place in a shard"));
        let data = self.data(self.layout.numbers.get(shard).copied().ok_or_else(internal)?)?;
        let start = data.place(tensor).ok_or_else(internal)?.0.start.saturating_add(written);
        self.stream(&data, piece, start).map_err(|source| Error::Storage {
            path: self.target.path.clone(),
            tensor: self.entries.get(tensor).map(|entry| excerpt(self.entries.name(entry))),
            source,
        })?;
        match self.entries.get_mut(tensor).map(|entry| &mut entry.source) {
            Some(Source::Declared { written }) => *written = written.saturating_add(piece.len() as u64),
            _ => return Err(self.error(WriterError::Internal("a piece was written of a tensor that takes none"))),
        }
        Ok(())
    }

    fn stream(&self, data: &Data<'_, '_>, piece: &[u8], start: u64) -> Result<(), StorageError> {
        let was_in_order = is_in_order(data);
        if was_in_order {
            self.make_next(data, start)?;
        }
        match fill::stream(data.file, piece, start) {
            // The first write was refused for its position.
            Err(_) if !was_in_order && is_in_order(data) => {
                self.make_next(data, start)?;
                fill::stream(data.file, piece, start)
            }
            done => done,
        }
    }

    /// Writes what is left to be written, waits until the disk has it, and puts the checkpoint in its place. After a failure it may
    /// be called again when the cause is mended; what was done is not done again.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: a tensor lacks bytes; a header is too large; the disk would not say that it has everything
    /// ([`WriterError::NotSynced`], after which nothing helps but another writer); something failed when the new checkpoint was in place
    /// already, or the old one was gone ([`WriterError::Unfinished`]). [`Error::Storage`]: the disk is full, or failed; for
    /// 30 s somebody else has had the folder locked. [`Error::Cancelled`].
    pub fn finish(&mut self) -> Result<(), Error> {
        self.check_process()?;
        self.usable().map_err(|source| self.error(source))?;
        self.seal()?;
        self.complete().map_err(|source| self.error(source))?;
        self.options.task.check()?;
        self.prepare()?;
        let done = self.write_out().and_then(|()| self.publish());
        self.options.task.end();
        done
    }

    fn push(
        &mut self,
        name_bytes: &[u8],
        dtype: Dtype,
        shape: &[u64],
        data: Option<&'d [u8]>,
    ) -> Result<(), WriterError> {
        self.open_for("tensor")?;
        let name = name(name_bytes, "name")?;
        if name == METADATA {
            return Err(WriterError::ReservedName { name: name.to_owned() });
        }
        let Some(bits) = bits_of(dtype, shape) else {
            return Err(WriterError::Overflow { tensor: excerpt(name), dtype, shape: shape_text(shape) });
        };
        if bits % 8 != 0 {
            return Err(WriterError::PartialByte { tensor: excerpt(name), dtype, bits });
        }
        let nbytes = bits / 8;
        if let Some(given) = data.map(|data| data.len() as u64).filter(|given| *given != nbytes) {
            let (tensor, shape) = (excerpt(name), shape_text(shape));
            return Err(WriterError::Size { tensor, dtype, shape, needed: nbytes, given });
        }
        let text_len = tensor_text_len(Described { name, dtype, shape, start: 0, stop: nbytes });
        let choice =
            self.dealer.choose(nbytes, text_len, self.metadata.text_len()).map_err(|refused| match refused {
                Refused::FileTooLarge => WriterError::FileTooLarge { tensor: excerpt(name) },
                Refused::Other(error) => error,
            })?;
        let source = data.map_or(Source::Declared { written: 0 }, Source::Added);
        self.entries.push(name, shape, |place| place.entry(dtype, nbytes, source, choice.shard))?;
        self.dealer.deal(choice);
        Ok(())
    }

    /// The tensor that a piece is for, its shard, and what it has already.
    fn expect(&self, name: &[u8], piece: u64) -> Result<(usize, usize, u64), WriterError> {
        self.usable()?;
        let name = utf8(name, "name")?;
        let found = self.entries.find(name).and_then(|tensor| Some((tensor, self.entries.get(tensor)?)));
        let (tensor, entry) = found.ok_or_else(|| WriterError::NotFound { name: excerpt(name) })?;
        match entry.source {
            Source::Added(_) => Err(WriterError::NotDeclared { tensor: excerpt(name) }),
            Source::Declared { written } if piece > entry.nbytes.saturating_sub(written) => {
                Err(WriterError::TooMuch { tensor: excerpt(name), nbytes: entry.nbytes, written, piece })
            }
            Source::Declared { written } => Ok((tensor, entry.shard, written)),
        }
    }

    /// In a child of the process a writer is a copy, whose files are the other one's.
    fn check_process(&self) -> Result<(), Error> {
        match self.target.folder.is_of_this_process() {
            true => Ok(()),
            false => {
                let what = "a writer does not go on in a child of its process";
                Err(self.target.storage_error(StorageError::Unsupported(what)))
            }
        }
    }

    fn open_for(&self, what: &'static str) -> Result<(), WriterError> {
        self.usable()?;
        match self.stage {
            Stage::Open => Ok(()),
            _ => Err(WriterError::Sealed { what }),
        }
    }

    fn usable(&self) -> Result<(), WriterError> {
        match self.stage {
            Stage::Open | Stage::Sealed | Stage::Prepared | Stage::Written => Ok(()),
            Stage::Broken { action, os_error } => Err(self.not_synced(action, os_error)),
            Stage::Finished => Err(WriterError::Finished),
        }
    }

    fn broken(&mut self, source: StorageError) -> Error {
        let (action, os_error) = match source {
            StorageError::Io { action, source } => (action, source.raw_os_error().unwrap_or(libc::EIO)),
            _ => ("sync", libc::EIO),
        };
        self.stage = Stage::Broken { action, os_error };
        self.error(self.not_synced(action, os_error))
    }

    fn not_synced(&self, action: &'static str, os_error: i32) -> WriterError {
        WriterError::NotSynced { action, source: io::Error::from_raw_os_error(os_error), found: self.found }
    }

    fn error(&self, source: WriterError) -> Error {
        Error::Writer { path: self.target.path.clone(), source }
    }
}

impl Drop for Writer<'_> {
    /// Leaves nothing behind but what has been published. In a child of the process it takes nothing away.
    fn drop(&mut self) {
        let is_ours = self.target.folder.is_of_this_process();
        if is_ours && self.has_begun && !matches!(self.stage, Stage::Finished) {
            self.abandon();
        }
    }
}

fn utf8<'a>(text: &'a [u8], what: &'static str) -> Result<&'a str, WriterError> {
    std::str::from_utf8(text).map_err(|error| WriterError::Utf8 { what, position: error.valid_up_to() })
}

fn name<'a>(text: &'a [u8], what: &'static str) -> Result<&'a str, WriterError> {
    let name = utf8(text, what)?;
    match name.contains('\0') {
        true => Err(WriterError::NulInName { name: excerpt(name) }),
        false => Ok(name),
    }
}
