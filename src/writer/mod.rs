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
//! checksums  of what was written, for the metadata
//! publish    from temporary files to a checkpoint
//! ```

mod checksums;
mod data;
mod dealer;
mod entries;
mod error;
mod fill;
mod layout;
mod options;
mod publish;
mod shard;
mod target;

pub use error::WriterError;
pub use options::{Checksums, WriterOptions};

use crate::error::Error;
use crate::format::encode::{encode_index, metadata_text_len, tensor_text_len, text_len, Described};
use crate::format::{bits_of, shape_text, Dtype, MAX_HEADER_LEN};
use crate::quote::excerpt;
use crate::storage::output::Temporary;
use crate::storage::StorageError;
use dealer::{Dealer, Refused};
use entries::{Entries, Metadata, Source};
use fill::Failed;
use layout::{lay_out, Layout, Rules};
use publish::{can_link, Move, Publication, Stopped};
use shard::{write_text, Shard};
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
    stage: Stage,
    /// Whether all files are there, in their full length.
    is_prepared: bool,
    layout: Layout,
    shards: Vec<Shard>,
    /// The temporary files of indices, while they are published.
    indices: Vec<Temporary>,
    publication: Option<Publication>,
}

/// How far a writer is.
#[derive(Debug)]
enum Stage {
    /// Tensors and metadata can be added.
    Open,
    /// Where everything lies is fixed.
    Sealed,
    /// A sync has failed. Later ones would succeed, since the system tells of an error once, and would mean nothing.
    Broken {
        os_error: i32,
        in_place: bool,
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
        let is_private = target.replaced_mode(&target.name).map_err(|source| target.storage_error(source))?.is_some();
        let first = Temporary::create(&target.folder, &target.temporaries, is_private);
        let first = Some(first.map_err(|source| target.storage_error(source))?);
        Ok(Writer {
            dealer: Dealer::new(options.max_shard_bytes),
            target,
            options,
            alignment,
            entries: Entries::default(),
            metadata: Metadata::default(),
            first,
            stage: Stage::Open,
            is_prepared: false,
            layout: Layout { starts: Vec::new(), numbers: Vec::new() },
            shards: Vec::new(),
            indices: Vec::new(),
            publication: None,
        })
    }

    /// Adds an entry to the metadata of each file. Entries keep their order.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: key or value is not UTF-8, the key has a NUL or is there already, a header would be too large, or it is too
    /// late to add anything.
    pub fn metadata(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), Error> {
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
        self.push(name.as_ref(), dtype, shape, Some(data)).map_err(|source| self.error(source))
    }

    /// Announces a tensor whose bytes [`Writer::write`] will bring.
    ///
    /// # Errors
    ///
    /// As for [`Writer::add`].
    pub fn declare(&mut self, name: impl AsRef<[u8]>, dtype: Dtype, shape: &[u64]) -> Result<(), Error> {
        self.push(name.as_ref(), dtype, shape, None).map_err(|source| self.error(source))
    }

    /// Brings the next bytes of a tensor that was declared. Tensors may be written in any order, and in turns. From the first piece on
    /// nothing can be added any more. A piece that fails was not brought, and may be given again.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: no such tensor was declared, or it has no room for so many bytes. [`Error::Storage`]: the disk is full, or
    /// failed.
    pub fn write(&mut self, name: impl AsRef<[u8]>, data: &[u8]) -> Result<(), Error> {
        let (tensor, shard, written) = self.expect(name.as_ref(), data.len() as u64).map_err(|e| self.error(e))?;
        self.prepare()?;
        let number = self.layout.numbers.get(shard).copied().unwrap_or(0);
        let shard = self.shards.get(number).and_then(|shard| shard.data(&self.entries, &self.layout.starts));
        let place = shard.and_then(|shard| Some((shard.file, shard.place(tensor)?.0.start)));
        let (file, start) = place.ok_or_else(|| self.error(WriterError::NoMemory))?;
        fill::stream(file, data, start.saturating_add(written)).map_err(|source| Error::Storage {
            path: self.target.path.clone(),
            tensor: self.entries.get(tensor).map(|entry| excerpt(self.entries.name(entry))),
            source,
        })?;
        if let Some(Source::Declared { written }) = self.entries.get_mut(tensor).map(|entry| &mut entry.source) {
            *written = written.saturating_add(data.len() as u64);
        }
        Ok(())
    }

    /// Writes what is left to be written, waits until the disk has it, and puts the checkpoint in its place. After a failure it may
    /// be called again when the cause is mended.
    ///
    /// # Errors
    ///
    /// [`Error::Writer`]: a tensor lacks bytes; a header is too large; the disk would not say that it has everything
    /// ([`WriterError::NotSynced`], after which nothing helps but another writer). [`Error::Storage`]: the disk is full, or failed.
    /// [`Error::Cancelled`].
    pub fn finish(&mut self) -> Result<(), Error> {
        self.usable().map_err(|source| self.error(source))?;
        self.seal()?;
        self.complete().map_err(|source| self.error(source))?;
        self.options.task.check()?;
        self.prepare()?;
        let done = self.finish_prepared();
        self.options.task.end();
        done
    }

    fn finish_prepared(&mut self) -> Result<(), Error> {
        if self.publication.is_none() {
            self.fill()?;
            self.headers()?;
            self.sync()?;
        }
        // Two writers of the same shards would mix theirs.
        let several = self.options.max_shard_bytes > 0;
        let task = &self.options.task;
        let lock = if several { self.target.folder.lock(|| task.check())? } else { None };
        if self.publication.is_none() {
            self.publication = Some(self.plan()?);
        }
        self.publish()?;
        drop(lock);
        Ok(())
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

    /// Fixes where everything lies.
    fn seal(&mut self) -> Result<(), Error> {
        self.stage = Stage::Sealed;
        if !self.shards.is_empty() {
            return Ok(());
        }
        let rules = Rules {
            insertion_order: self.options.insertion_order,
            alignment: self.alignment,
            checksums: self.options.checksums,
        };
        let laid_out = self
            .dealer
            .numbers()
            .and_then(|numbers| lay_out(&self.entries, &self.metadata, numbers, rules))
            .map_err(|source| self.error(source))?;
        let (layout, shards) = laid_out;
        self.layout = layout;
        self.shards = shards.into_iter().map(Shard::new).collect();
        Ok(())
    }

    /// Sees to it that all files are there, in their full length.
    fn prepare(&mut self) -> Result<(), Error> {
        if self.is_prepared {
            return Ok(());
        }
        self.seal()?;
        let len = self.shards.len();
        let target = &self.target;
        for (number, shard) in self.shards.iter_mut().enumerate() {
            let name = file_name(target, number, len);
            shard.prepare(target, &name, &mut self.first).map_err(|source| target.storage_error(source))?;
        }
        self.first = None;
        self.is_prepared = true;
        Ok(())
    }

    /// Whether every tensor has its bytes.
    fn complete(&self) -> Result<(), WriterError> {
        let missing = |entry: &entries::Entry<'_>| match entry.source {
            Source::Declared { written } => entry.nbytes.saturating_sub(written),
            Source::Added(_) => 0,
        };
        let mut lacking = self.entries.iter().filter(|entry| missing(entry) > 0);
        match lacking.next() {
            Some(first) => Err(WriterError::Incomplete {
                tensor: excerpt(self.entries.name(first)),
                missing: missing(first),
                tensors: 1 + lacking.count() as u64,
            }),
            None => Ok(()),
        }
    }

    /// Writes the tensors that were added.
    fn fill(&mut self) -> Result<(), Error> {
        let (entries, starts, target, task) = (&self.entries, &self.layout.starts, &self.target, &self.options.task);
        let mut runs = Vec::new();
        for shard in self.shards.iter().filter(|shard| !shard.is_filled) {
            let of_shard = shard.data(entries, starts).map(|data| fill::runs(&data)).unwrap_or_else(|| Ok(Vec::new()));
            runs.push(of_shard.map_err(|source| target.storage_error(source))?);
        }
        let total = runs.iter().flatten().fold(0u64, |sum, run| sum.saturating_add(run.end - run.start));
        let hashed = |shard: &Shard| checksums::bytes(self.options.checksums, shard.layout.data_len());
        let hashed = self.shards.iter().map(hashed).fold(total, u64::saturating_add);
        task.begin(hashed, entries.len() as u64);
        for (shard, runs) in self.shards.iter_mut().filter(|shard| !shard.is_filled).zip(&runs) {
            if let Some(data) = shard.data(entries, starts) {
                fill::fill(&data, runs, total >= fill::LARGE, task).map_err(|failed| match failed {
                    Failed::Storage(source) => target.storage_error(source),
                    Failed::Cancelled(cancelled) => cancelled,
                })?;
            }
            shard.is_filled = true;
        }
        // Those without bytes, and those that were written before.
        let done = task.progress().items_done;
        task.done(0, (entries.len() as u64).saturating_sub(done))
    }

    fn headers(&self) -> Result<(), Error> {
        for shard in &self.shards {
            let Some(data) = shard.data(&self.entries, &self.layout.starts) else { continue };
            let (checksums, task) = (self.options.checksums, &self.options.task);
            let values = checksums::values(checksums, &data, &self.metadata, &self.target, task)?;
            data.write_header(&self.metadata, &values).map_err(|source| self.target.storage_error(source))?;
        }
        Ok(())
    }

    /// Gives files the permissions of those that they replace, and waits until the disk has them.
    fn sync(&mut self) -> Result<(), Error> {
        let len = self.shards.len();
        for number in 0..len {
            let name = file_name(&self.target, number, len);
            let Some(file) = self.shards.get(number).and_then(|shard| shard.file.as_ref()) else { continue };
            settle(&self.target, file, &name).map_err(|source| self.target.storage_error(source))?;
        }
        for number in 0..len {
            self.options.task.check()?;
            let Some(file) = self.shards.get(number).and_then(|shard| shard.file.as_ref()) else { continue };
            let synced = if self.options.no_sync { Ok(()) } else { file.sync() };
            synced.map_err(|source| self.broken(source, false))?;
        }
        Ok(())
    }

    /// The steps that put the files in their places.
    fn plan(&mut self) -> Result<Publication, Error> {
        let is_sharded = self.options.max_shard_bytes > 0;
        let len = self.shards.len();
        self.indices.clear();
        let target = &self.target;
        let storage = |source| target.storage_error(source);
        let mut old = if is_sharded { target.indexed().map_err(storage)? } else { Vec::new() };
        old.retain(|name| target.is_shard(name));
        let mut files = Vec::new();
        let mut collides = false;
        for (number, shard) in self.shards.iter().enumerate() {
            let to = file_name(target, number, len);
            let Some(from) = shard.file.as_ref().and_then(Temporary::name) else { continue };
            collides |= target.folder.find(&to).map_err(storage)?.is_some();
            files.push(Move { from: from.to_owned(), to });
        }
        if len == 1 {
            let index = is_sharded.then(|| target.index_name());
            let index = index.filter(|index| matches!(target.folder.find(index), Ok(Some(_))));
            let file = files.pop().ok_or_else(|| self.error(WriterError::NoMemory))?;
            return Ok(Publication::of_one(file, index, old));
        }
        let mut new: Vec<&CString> = files.iter().map(|file| &file.to).collect();
        new.sort_unstable();
        old.retain(|name| new.binary_search(&name).is_err());
        drop(new);
        let index = self.index(&files, |file| &file.to)?;
        let first = files.first().map(|file| file.from.as_c_str()).unwrap_or_default();
        if !collides {
            return Ok(Publication::of_new(files, index, old));
        }
        if !can_link(&self.target, first) {
            return Ok(Publication::of_replacing_without_links(files, index, old));
        }
        let between = self.index(&files, |file| &file.from)?.from;
        let links = files.iter().map(|_| self.target.temporaries.next()).collect();
        Ok(Publication::of_replacing(files, links, between, index, old))
    }

    /// Writes an index that calls the files as `name_of` does.
    fn index(&mut self, files: &[Move], name_of: impl Fn(&Move) -> &CString) -> Result<Move, Error> {
        let to = self.target.index_name();
        let storage = |source| self.target.storage_error(source);
        let is_private = self.target.replaced_mode(&to).map_err(storage)?.is_some();
        let made = Temporary::create(&self.target.folder, &self.target.temporaries, is_private);
        let file = made.map_err(storage)?;
        let mut order = Vec::new();
        order.try_reserve_exact(self.entries.len()).map_err(|_| self.error(WriterError::NoMemory))?;
        order.extend(self.entries.iter());
        order.sort_unstable_by(|a, b| self.entries.name(a).as_bytes().cmp(self.entries.name(b).as_bytes()));
        let total = self.entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.nbytes));
        let file_of = |entry: &entries::Entry<'_>| {
            let number = self.layout.numbers.get(entry.shard)?;
            name_of(files.get(*number)?).to_str().ok()
        };
        let named = || order.iter().filter_map(|entry| Some((self.entries.name(entry), file_of(entry)?)));
        let len = text_len(|text| encode_index(text, total, named()));
        file.allocate(len).map_err(storage)?;
        write_text(&file, |text| encode_index(text, total, named())).map_err(storage)?;
        settle(&self.target, &file, &to).map_err(storage)?;
        if !self.options.no_sync {
            file.sync().map_err(|source| self.broken(source, false))?;
        }
        let from = file.name().map(ToOwned::to_owned).unwrap_or_default();
        self.indices.push(file);
        Ok(Move { from, to })
    }

    fn publish(&mut self) -> Result<(), Error> {
        let Some(publication) = &mut self.publication else { return Ok(()) };
        match publication.run(&self.target.folder, !self.options.no_sync) {
            Ok(()) => {
                self.stage = Stage::Finished;
                // No temporary name is left.
                let files = self.shards.iter_mut().filter_map(|shard| shard.file.as_mut());
                files.chain(&mut self.indices).for_each(Temporary::keep);
                self.shards.clear();
                self.indices.clear();
                if self.options.max_shard_bytes > 0 {
                    // An index of a writer that died while it published has named them until now.
                    self.target.remove_leftovers(false);
                }
                Ok(())
            }
            Err(Stopped { source, is_sync: true, in_place }) => Err(self.broken(source, in_place)),
            Err(Stopped { source, .. }) => Err(self.target.storage_error(source)),
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
            Stage::Open | Stage::Sealed => Ok(()),
            Stage::Broken { os_error, in_place } => {
                Err(WriterError::NotSynced { source: io::Error::from_raw_os_error(os_error), in_place })
            }
            Stage::Finished => Err(WriterError::Finished),
        }
    }

    fn broken(&mut self, source: StorageError, in_place: bool) -> Error {
        let os_error = match source {
            StorageError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        };
        self.stage = Stage::Broken { os_error, in_place };
        self.error(WriterError::NotSynced { source: io::Error::from_raw_os_error(os_error), in_place })
    }

    fn error(&self, source: WriterError) -> Error {
        Error::Writer { path: self.target.path.clone(), source }
    }
}

impl Drop for Writer<'_> {
    /// Leaves nothing behind but what has been published.
    fn drop(&mut self) {
        if let Some(publication) = &self.publication {
            publication.abandon(&self.target.folder, self.shards.iter_mut().filter_map(|shard| shard.file.as_mut()));
        }
    }
}

/// What file `number` of `len` is called.
fn file_name(target: &Target, number: usize, len: usize) -> CString {
    match len {
        1 => target.name.clone(),
        _ => target.shard_name(number, len),
    }
}

/// Gives a file the permissions of the one that it replaces.
fn settle(target: &Target, file: &Temporary, name: &std::ffi::CStr) -> Result<(), StorageError> {
    match target.replaced_mode(name)? {
        Some(mode) => file.set_mode(mode),
        None => Ok(()),
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
