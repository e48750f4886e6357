//! A tensor's bytes: where they lie, or copied to where they should go.

use super::read::read_slice;
use super::{Checkpoint, Tensor};
use crate::error::Error;
use crate::format::{Dtype, Slice, SliceError};
use crate::quote::excerpt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;

/// The bytes of a tensor, in memory. Made by [`Checkpoint::tensor_ptr`].
#[derive(Clone, Copy, Debug)]
pub struct TensorBytes<'c> {
    start: NonNull<u8>,
    len: usize,
    checkpoint: PhantomData<&'c Checkpoint>,
}

impl<'c> TensorBytes<'c> {
    pub(super) fn new(start: NonNull<u8>, nbytes: u64) -> TensorBytes<'c> {
        TensorBytes { start, len: nbytes as usize, checkpoint: PhantomData }
    }

    /// The first byte, aligned for the tensor's dtype; never NULL. Valid as long as the checkpoint.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The first byte, to write to. Only a checkpoint opened with copy-on-write may be written to: the pages of any other are
    /// read-only.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    ///
    /// As long as the slice lives, nobody may change the file (a mapping would show it) or truncate it (touching the lost pages
    /// would raise SIGBUS), and nobody may write to the tensor through [`TensorBytes::as_mut_ptr`].
    pub unsafe fn as_slice(&self) -> &'c [u8] {
        // SAFETY: so many bytes belong to the tensor, and the caller answers for the rest.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// A slice of a tensor in place: its first element, shape and strides. Made by [`Checkpoint::tensor_view`].
#[derive(Clone, Debug)]
pub struct View<'c> {
    start: NonNull<u8>,
    slice: Slice,
    checkpoint: PhantomData<&'c Checkpoint>,
}

impl View<'_> {
    /// The first selected element; never NULL. Valid as long as the checkpoint.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The first selected element, to write to: under the same condition as [`TensorBytes::as_mut_ptr`].
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.slice.dtype()
    }

    /// The selected elements per dimension.
    pub fn shape(&self) -> &[u64] {
        self.slice.shape()
    }

    /// Elements from one index to the next, per dimension.
    pub fn strides(&self) -> &[u64] {
        self.slice.strides()
    }

    /// The size of the selected elements in bytes. If they are not contiguous, they span more.
    pub fn nbytes(&self) -> u64 {
        self.slice.nbytes()
    }

    /// Whether the selected elements follow one another without a gap.
    pub fn is_contiguous(&self) -> bool {
        self.slice.is_contiguous()
    }
}

impl Checkpoint {
    /// Where the bytes of tensor `index` lie. Over a mapping this reads nothing.
    ///
    /// A tensor that is not aligned for its dtype where it lies, or that lies in a file which is not mapped, is read into an aligned copy
    /// on the first call; each later call gives the same copy. The copy counts against the budget and is never evicted.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Storage`] or [`Error::Budget`] if a copy is needed and cannot be made.
    pub fn tensor_ptr(&self, index: usize) -> Result<TensorBytes<'_>, Error> {
        let tensor = self.tensor_at(index)?;
        let start = self.start_of(&tensor)?;
        Ok(TensorBytes::new(start, tensor.nbytes()))
    }

    /// A slice of tensor `index` in place, without a copy beyond the one that [`Checkpoint::tensor_ptr`] may have to make. The
    /// ranges are explained at [`Slice::new`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Slice`] for wrong ranges; [`Error::Storage`] or [`Error::Budget`] if a copy
    /// is needed and cannot be made.
    pub fn tensor_view(&self, index: usize, ranges: &[Range<u64>]) -> Result<View<'_>, Error> {
        let tensor = self.tensor_at(index)?;
        let slice = self.slice(&tensor, ranges)?;
        let first = self.start_of(&tensor)?;
        // The offset lies inside the tensor, so it fits.
        let start = NonNull::new(first.as_ptr().wrapping_add(slice.offset() as usize));
        let start = start.ok_or(Error::Internal { what: "a slice starts at no address" })?;
        Ok(View { start, slice, checkpoint: PhantomData })
    }

    /// Copies a slice of tensor `index` to the front of `dst`, packed, in the order of its elements. Gives the number of bytes,
    /// all of which are initialised then. The ranges are explained at [`Slice::new`].
    ///
    /// The bytes are read from the file whatever the storage: writes through a copy-on-write pointer are not seen, and a file that
    /// was truncated gives an error, never a signal.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Slice`] for wrong ranges; [`Error::BufferTooSmall`]; [`Error::Storage`] if the
    /// bytes cannot be read, after which the content of `dst` is unspecified.
    pub fn tensor_read(
        &self,
        index: usize,
        ranges: &[Range<u64>],
        dst: &mut [MaybeUninit<u8>],
    ) -> Result<usize, Error> {
        let tensor = self.tensor_at(index)?;
        let slice = self.slice(&tensor, ranges)?;
        let (needed, given) = (slice.nbytes(), dst.len() as u64);
        let Some(dst) = dst.get_mut(..needed as usize) else {
            return Err(Error::BufferTooSmall { tensor: excerpt(tensor.name()), needed, given });
        };
        let read = read_slice(&tensor.shard.storage, tensor.file_offset(), &slice, dst);
        read.map_err(|source| tensor.shard.storage_error(Some(tensor.name()), source))?;
        self.check_unchanged(&tensor)?;
        if needed == tensor.nbytes() {
            // SAFETY: `read_slice` has initialised all of it.
            self.check_read(&tensor, unsafe { &*(&raw const *dst as *const [u8]) }, &|| Ok(()))?;
        }
        Ok(needed as usize)
    }

    /// Whether tensors may be written to in memory: the checkpoint was opened with copy-on-write.
    pub fn is_writable(&self) -> bool {
        self.shards.list().iter().all(|shard| shard.storage.is_writable())
    }

    /// Tensor `index`, or the error that there is none.
    pub(crate) fn tensor_at(&self, index: usize) -> Result<Tensor<'_>, Error> {
        self.tensor(index).ok_or(Error::NoSuchTensor { index, len: self.len() })
    }

    /// The error of giving `ranges` ranges for a tensor of fewer dimensions.
    pub(crate) fn too_many_ranges(&self, tensor: &Tensor<'_>, ranges: usize) -> Error {
        self.slice_error(tensor, SliceError::TooManyRanges { ranges, rank: tensor.shape().len() })
    }

    /// The error of having no memory for the numbers of each dimension of a tensor.
    pub(crate) fn no_memory_for(&self, tensor: &Tensor<'_>) -> Error {
        self.slice_error(tensor, SliceError::NoMemory { rank: tensor.shape().len() })
    }

    pub(super) fn slice(&self, tensor: &Tensor<'_>, ranges: &[Range<u64>]) -> Result<Slice, Error> {
        Slice::new(tensor.dtype(), tensor.shape(), ranges).map_err(|source| self.slice_error(tensor, source))
    }

    fn slice_error(&self, tensor: &Tensor<'_>, source: SliceError) -> Error {
        Error::Slice { path: tensor.shard.path_text(), tensor: excerpt(tensor.name()), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::END;
    use crate::storage::{StorageKind, StorageOptions};
    use crate::OpenOptions;
    use std::io::Write;

    /// `a` F32 [2, 3] at an offset of 4 modulo 8, `b` U8 [3], `empty` F64 [0], and `odd`, an F16 at an odd offset.
    fn file() -> Vec<u8> {
        let header = br#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"U8","shape":[3],"data_offsets":[24,27]},"empty":{"dtype":"F64","shape":[0],"data_offsets":[27,27]},"odd":{"dtype":"F16","shape":[1],"data_offsets":[27,29]}}"#;
        let mut header = header.to_vec();
        while header.len() % 8 != 4 {
            header.push(b' ');
        }
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        for value in 0..6 {
            file.extend((value as f32).to_le_bytes());
        }
        file.extend([7, 8, 9, 0x34, 0x12]);
        file
    }

    fn each_storage(test: impl Fn(&Checkpoint)) {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(&file()).unwrap();
        for copy_on_write in [false, true] {
            for kind in [StorageKind::Auto, StorageKind::Mmap, StorageKind::Read] {
                let storage = StorageOptions { kind, copy_on_write, ..StorageOptions::default() };
                test(&Checkpoint::open(on_disk.path(), OpenOptions { storage, ..OpenOptions::default() }).unwrap());
            }
            let storage = StorageOptions { copy_on_write, ..StorageOptions::default() };
            test(&Checkpoint::open_memory(file(), OpenOptions { storage, ..OpenOptions::default() }).unwrap());
        }
    }

    fn bytes<'c>(checkpoint: &'c Checkpoint, name: &str) -> &'c [u8] {
        let bytes = checkpoint.tensor_ptr(checkpoint.find(name).unwrap()).unwrap();
        // SAFETY: nobody else knows the file.
        unsafe { bytes.as_slice() }
    }

    #[test]
    fn tensor_ptr_gives_aligned_bytes_of_every_storage() {
        each_storage(|checkpoint| {
            assert_eq!(bytes(checkpoint, "a")[20..], 5f32.to_le_bytes());
            assert_eq!(bytes(checkpoint, "b"), [7, 8, 9]);
            assert_eq!(bytes(checkpoint, "odd"), [0x34, 0x12]);
            assert!(bytes(checkpoint, "empty").is_empty());
            for tensor in checkpoint.tensors() {
                let pointer = checkpoint.tensor_ptr(tensor.index()).unwrap().as_ptr();
                assert_eq!(pointer as usize % tensor.dtype().alignment(), 0);
                assert_eq!(pointer, checkpoint.tensor_ptr(tensor.index()).unwrap().as_ptr());
            }
            assert!(matches!(checkpoint.tensor_ptr(4), Err(Error::NoSuchTensor { index: 4, len: 4 })));
        });
    }

    #[test]
    fn tensor_view_points_into_the_tensor() {
        each_storage(|checkpoint| {
            let whole = checkpoint.tensor_ptr(0).unwrap();
            let view = checkpoint.tensor_view(0, &[0..END, 1..3]).unwrap();
            assert_eq!(view.as_ptr() as usize - whole.as_ptr() as usize, 4);
            assert_eq!((view.shape(), view.strides(), view.nbytes()), (&[2, 2][..], &[3, 1][..], 16));
            assert!(!view.is_contiguous() && checkpoint.tensor_view(0, &[1..2]).unwrap().is_contiguous());
        });
    }

    #[test]
    fn tensor_read_copies_slices() {
        each_storage(|checkpoint| {
            let mut dst = [MaybeUninit::new(0u8); 17];
            assert_eq!(checkpoint.tensor_read(0, &[0..END, 1..3], &mut dst).unwrap(), 16);
            // SAFETY: initialised from the start.
            let dst: [u8; 17] = dst.map(|byte| unsafe { byte.assume_init() });
            let expected: Vec<u8> = [1f32, 2., 4., 5.].iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!((&dst[..16], dst[16]), (&expected[..], 0));
            let refused = checkpoint.tensor_read(0, &[], &mut [MaybeUninit::uninit(); 23]);
            assert!(matches!(refused, Err(Error::BufferTooSmall { needed: 24, given: 23, .. })));
            assert!(matches!(checkpoint.tensor_read(0, &[0..3], &mut []), Err(Error::Slice { .. })));
            assert_eq!(checkpoint.tensor_read(2, &[], &mut []).unwrap(), 0);
        });
    }

    #[test]
    fn copy_on_write_leaves_what_is_read_alone() {
        each_storage(|checkpoint| {
            if !checkpoint.is_writable() {
                return;
            }
            // SAFETY: opened with copy-on-write.
            unsafe { checkpoint.tensor_ptr(1).unwrap().as_mut_ptr().write(42) };
            assert_eq!(bytes(checkpoint, "b"), [42, 8, 9]);
            let mut dst = [MaybeUninit::new(0u8); 3];
            checkpoint.tensor_read(1, &[], &mut dst).unwrap();
            // SAFETY: initialised from the start.
            assert_eq!(unsafe { dst[0].assume_init() }, 7);
        });
    }
}
