//! Slices, reads, views and look-ups against models that are too simple to be wrong.

use crate::reference::{check, Verdict};
use crate::sample::{self, dtype, name, tensors, Tensor};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors_lazy::format::{Run, Slice, SliceError, END};
use safetensors_lazy::storage::{StorageKind, StorageOptions};
use safetensors_lazy::{Checkpoint, Dtype, Error, OpenOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::ops::Range;

pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// A tensor's shape, and ranges of it.
#[derive(Clone, Debug)]
struct Selection {
    dtype: Dtype,
    shape: Vec<u64>,
    ranges: Vec<Range<u64>>,
}

fn selection(dtype: impl Strategy<Value = Dtype>) -> impl Strategy<Value = Selection> {
    let dimension = (0..7u64, any::<bool>(), any::<u16>(), any::<u16>()).prop_map(|(len, whole, a, b)| {
        let (a, b) = (u64::from(a) % (len + 1), u64::from(b) % (len + 1));
        match whole {
            true if a < b => (len, 0..len),
            true => (len, 0..END),
            false => (len, a.min(b)..a.max(b)),
        }
    });
    (dtype, vec(dimension, 0..6), 0..7usize).prop_map(|(dtype, dimensions, ranges)| Selection {
        dtype,
        shape: dimensions.iter().map(|(len, _)| *len).collect(),
        ranges: dimensions.iter().map(|(_, range)| range.clone()).take(ranges).collect(),
    })
}

/// Elements of 4 and 6 bits as often as all others.
fn dtype_often_small() -> impl Strategy<Value = Dtype> {
    prop_oneof![dtype(), proptest::sample::select(vec![Dtype::F4, Dtype::F6_E2M3, Dtype::F6_E3M2])]
}

impl Selection {
    /// Start and stop in each dimension.
    fn bounds(&self) -> Vec<Range<u64>> {
        let bound = |(dimension, len): (usize, &u64)| match self.ranges.get(dimension) {
            Some(range) if range.end != END => range.clone(),
            Some(range) => range.start..*len,
            None => 0..*len,
        };
        self.shape.iter().enumerate().map(bound).collect()
    }

    /// The selected elements' numbers in the tensor, one by one, in row-major order.
    fn elements(&self) -> Vec<u64> {
        let mut elements = vec![0];
        for (range, len) in self.bounds().into_iter().zip(&self.shape) {
            elements = elements.iter().flat_map(|row| range.clone().map(move |i| row * len + i)).collect();
        }
        elements
    }

    /// The runs of the selected bits, as (first bit, number of bits).
    fn bit_runs(&self) -> Vec<(u64, u64)> {
        let bits = u64::from(self.dtype.bits());
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for element in self.elements() {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == element * bits => *len += bits,
                _ => runs.push((element * bits, bits)),
            }
        }
        runs
    }

    /// As [`Selection::bit_runs`] in bytes; `None` if one starts or ends inside a byte.
    fn byte_runs(&self) -> Option<Vec<Run>> {
        let run = |(start, len): &(u64, u64)| {
            (start % 8 == 0 && len % 8 == 0).then_some(Run { offset: start / 8, len: len / 8 })
        };
        self.bit_runs().iter().map(run).collect()
    }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn runs_are_those_of_a_walk_over_all_elements(selection in selection(dtype_often_small())) {
        let Selection { dtype, shape, ranges } = &selection;
        let slice = Slice::new(*dtype, shape, ranges);
        if ranges.len() > shape.len() {
            prop_assert_eq!(slice, Err(SliceError::TooManyRanges { ranges: ranges.len(), rank: shape.len() }));
            return Ok(());
        }
        let Some(expected) = selection.byte_runs() else {
            prop_assert_eq!(slice, Err(SliceError::PartialByte { dtype: *dtype }));
            return Ok(());
        };
        let slice = slice.unwrap();
        let runs: Vec<Run> = slice.runs().collect();
        prop_assert_eq!(&runs, &expected);
        prop_assert!(runs.windows(2).all(|pair| pair[0].offset + pair[0].len < pair[1].offset));
        prop_assert_eq!(slice.nbytes(), runs.iter().map(|run| run.len).sum::<u64>());
        prop_assert_eq!(slice.offset(), runs.first().map_or(0, |run| run.offset));
        prop_assert_eq!(slice.is_contiguous(), runs.len() <= 1);
        prop_assert_eq!(slice.runs().size_hint(), (runs.len(), Some(runs.len())));
        let counts: Vec<u64> = selection.bounds().iter().map(|range| range.end - range.start).collect();
        prop_assert_eq!(slice.shape(), counts);
    }

    #[test]
    fn a_range_that_leaves_its_dimension_is_refused_with_its_numbers(
        selection in selection(Just(Dtype::F32)),
        at in any::<prop::sample::Index>(),
        start in 0..9u64,
        stop in prop_oneof![8 => 0..9u64, 1 => Just(END - 1)],
    ) {
        let Selection { dtype, shape, mut ranges } = selection;
        ranges.truncate(shape.len());
        if ranges.is_empty() {
            return Ok(());
        }
        let dimension = at.index(ranges.len());
        let len = shape[dimension];
        ranges[dimension] = start..stop;
        let expected = match start > stop || stop > len {
            true => Some(SliceError::OutOfRange { dimension, start, stop, len }),
            false => None,
        };
        prop_assert_eq!(Slice::new(dtype, &shape, &ranges).err(), expected);
    }
}

/// The bits of `elements` of `bits` each, packed one after the other, the lowest bit first.
fn pack(bytes: &[u8], bits: usize, elements: &[u64]) -> Vec<u8> {
    let mut packed = vec![0; (elements.len() * bits).div_ceil(8)];
    let positions = elements.iter().flat_map(|element| (0..bits).map(move |bit| *element as usize * bits + bit));
    for (to, from) in positions.enumerate() {
        packed[to / 8] |= (bytes[from / 8] >> (from % 8) & 1) << (to % 8);
    }
    packed
}

/// The elements of a view, as numbers of elements from its first one.
fn walk(shape: &[u64], strides: &[u64]) -> Vec<u64> {
    let mut elements = vec![0];
    for (len, stride) in shape.iter().zip(strides) {
        elements = elements.iter().flat_map(|row| (0..*len).map(move |i| row + i * stride)).collect();
    }
    elements
}

/// A file with `pad` bytes in front of the tensor's, so that it may be unaligned; and the same on disk.
fn file_of(selection: &Selection, pad: usize) -> (Vec<u8>, tempfile::NamedTempFile) {
    let tensor = Tensor { name: "t".to_owned(), dtype: selection.dtype, shape: selection.shape.clone() };
    let stop = pad + tensor.nbytes();
    let header =
        format!(r#"{{"pad":["U8",[{pad}],[0,{pad}]],"t":["{}",{:?},[{pad},{stop}]]}}"#, tensor.dtype, tensor.shape);
    let file = sample::file(header.as_bytes(), &sample::data(stop));
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file).unwrap();
    (file, on_disk)
}

pub fn read(checkpoint: &Checkpoint, index: usize, ranges: &[Range<u64>], room: usize) -> Result<Vec<u8>, Error> {
    let mut dst = vec![MaybeUninit::new(0xee); room];
    let read = checkpoint.tensor_read(index, ranges, &mut dst)?;
    // SAFETY: initialised from the start.
    let bytes: Vec<u8> = dst.into_iter().map(|byte| unsafe { byte.assume_init() }).collect();
    assert!(bytes[read..].iter().all(|byte| *byte == 0xee), "written beyond the slice");
    Ok(bytes[..read].to_vec())
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn reads_and_views_give_the_selected_elements(
        selection in selection(dtype_often_small()).prop_filter("a tensor of whole bytes", |selection| {
            let bits = selection.shape.iter().product::<u64>() * u64::from(selection.dtype.bits());
            bits % 8 == 0 && selection.ranges.len() <= selection.shape.len()
        }),
        pad in 0..9usize,
        copy_on_write in any::<bool>(),
    ) {
        let (file, on_disk) = file_of(&selection, pad);
        let bits = selection.dtype.bits() as usize;
        let nbytes = selection.shape.iter().product::<u64>() as usize * bits / 8;
        let whole = &file[file.len() - nbytes..];
        let expected = selection.byte_runs().map(|_| pack(whole, bits, &selection.elements()));
        for kind in [StorageKind::Mmap, StorageKind::Read, StorageKind::Memory] {
            let options = OpenOptions { storage: StorageOptions { kind, copy_on_write, ..StorageOptions::default() }, ..OpenOptions::default() };
            let checkpoint = match kind {
                StorageKind::Memory => Checkpoint::open_memory(file.clone(), options).unwrap(),
                _ => Checkpoint::open(on_disk.path(), options).unwrap(),
            };
            let read = read(&checkpoint, 1, &selection.ranges, nbytes + 3);
            let view = checkpoint.tensor_view(1, &selection.ranges);
            let Some(expected) = &expected else {
                let refused = |error| matches!(error, Error::Slice { source: SliceError::PartialByte { .. }, .. });
                prop_assert!(refused(read.unwrap_err()) && refused(view.unwrap_err()));
                continue;
            };
            prop_assert_eq!(&read.unwrap(), expected);

            let view = view.unwrap();
            let tensor = checkpoint.tensor_ptr(1).unwrap();
            prop_assert_eq!(tensor.as_ptr() as usize % selection.dtype.alignment(), 0);
            // SAFETY: nobody else knows the file.
            let tensor = unsafe { tensor.as_slice() };
            prop_assert_eq!(tensor, whole);
            let first = view.as_ptr() as usize - tensor.as_ptr() as usize;
            let strided = walk(view.shape(), view.strides());
            prop_assert_eq!(&pack(&tensor[first..], bits, &strided), expected);
            prop_assert_eq!(view.nbytes() as usize, expected.len());
            if view.is_contiguous() {
                prop_assert_eq!(&tensor[first..first + expected.len()], expected);
            }
        }
    }

    #[test]
    fn look_ups_find_what_a_scan_finds(
        names in btree_set(prop_oneof!["[ab.]{0,4}", name()], 0..40),
        wanted in prop_oneof!["[ab.]{0,4}", name(), Just("__metadata__".to_owned())],
    ) {
        let described = |name: &String| format!(r#"{}:["U8",[],[{{at}},{{stop}}]]"#, serde_json::to_string(name).unwrap());
        let mut entries = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let entry = described(name).replace("{at}", &at.to_string());
            entries.push(entry.replace("{stop}", &(at + 1).to_string()));
        }
        // Listed neither in byte order nor in its reverse.
        entries.rotate_left(names.len() / 2);
        let header = format!("{{{}}}", entries.join(","));
        let file = sample::file(header.as_bytes(), &sample::data(names.len()));
        let checkpoint = Checkpoint::open_memory(file, OpenOptions::default()).unwrap();
        let name_of = |index: usize| checkpoint.tensor(index).unwrap().name().to_owned();

        let expected: Vec<&String> = names.iter().filter(|name| name.starts_with(&wanted)).collect();
        let found: Vec<String> = checkpoint.find_prefix(&wanted).unwrap().iter().map(|index| name_of(*index)).collect();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        prop_assert_eq!(checkpoint.find(&wanted).map(name_of), names.get(&wanted).cloned());
        for name in &names {
            prop_assert_eq!(checkpoint.find(name).map(name_of), Some(name.clone()));
        }
    }

    #[test]
    fn what_the_reference_writes_is_read_back(tensors in tensors(), format in proptest::option::of(any::<String>())) {
        let data: Vec<Vec<u8>> = tensors.iter().map(|tensor| sample::data(tensor.nbytes())).collect();
        let view = |(tensor, data): (&Tensor, _)| {
            let dtype: safetensors::Dtype = serde_json::from_str(&format!("{:?}", tensor.dtype.name())).unwrap();
            let shape = tensor.shape.iter().map(|dim| *dim as usize).collect();
            (tensor.name.clone(), TensorView::new(dtype, shape, data).unwrap())
        };
        let views: Vec<_> = tensors.iter().zip(data.iter().map(Vec::as_slice)).map(view).collect();
        let metadata = format.clone().map(|format| [("format".to_owned(), format)].into());
        let file = safetensors::serialize(views, metadata).unwrap();
        prop_assert_eq!(check(&file), Ok(Verdict::Accepted));

        let checkpoint = Checkpoint::open_memory(file, OpenOptions::default()).unwrap();
        prop_assert_eq!(checkpoint.len(), tensors.len());
        prop_assert_eq!(checkpoint.metadata_get("format"), format.as_ref().map(String::as_bytes));
        for (expected, data) in tensors.iter().zip(&data) {
            let tensor = checkpoint.tensor(checkpoint.find(&expected.name).unwrap()).unwrap();
            prop_assert_eq!((tensor.dtype(), tensor.shape()), (expected.dtype, &expected.shape[..]));
            prop_assert_eq!(&read(&checkpoint, tensor.index(), &[], data.len()).unwrap(), data);
        }
    }
}
