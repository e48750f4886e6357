//! An index and shards that contradict each other, each in one way: every way has its status, and the message says where.

use super::{entries, file_of, index_text, shard, tensors_of, Model, INDEX};
use crate::c_api::open;
use std::fs::{self, File};

fn with(change: impl FnOnce(&mut Vec<(String, String)>)) -> Model {
    let model = Model::new();
    let mut entries = entries();
    change(&mut entries);
    model.write_index(&entries);
    model
}

/// Entry 3 is `2.weight` in the second shard.
const ENTRY: usize = 3;

#[test]
fn a_sound_model_opens() {
    Model::new().opens();
    with(|entries| entries.reverse()).opens();
}

#[test]
fn entry_dropped() {
    let model = with(|entries| drop(entries.remove(ENTRY)));
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "lacks tensor \"2.weight\"", &shard(2)]);
}

/// A shard that no entry names any more is none of the checkpoint's.
#[test]
fn all_entries_of_a_shard_dropped() {
    let model = with(|entries| entries.truncate(4));
    model.opens();
    fs::remove_file(model.path(&shard(3))).unwrap();
    model.opens();
}

#[test]
fn tensor_renamed() {
    for name in ["2.weight2", "2.weigh", "2.WEIGHT", "", "2.weight\0", "权重"] {
        let model = with(|entries| entries[ENTRY].0 = name.to_owned());
        let quoted = format!("tensor \"{}\" is not in", name.replace('\0', "\\0"));
        model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, &quoted, &shard(2)]);
    }
}

#[test]
fn entry_moved_to_another_shard() {
    for number in [1, 3] {
        let model = with(|entries| entries[ENTRY].1 = shard(number));
        model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "tensor \"2.weight\" is in", &shard(2)]);
    }
}

#[test]
fn entries_of_two_tensors_swapped() {
    let model = with(|entries| {
        let (first, second) = (entries[1].1.clone(), entries[ENTRY].1.clone());
        entries[1].1 = second;
        entries[ENTRY].1 = first;
    });
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "tensor \"1.weight\" is in", &shard(1)]);
}

#[test]
fn entry_added() {
    for at in [0, 3, 6] {
        let model = with(|entries| entries.insert(at, ("foreign".to_owned(), shard(2))));
        model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "tensor \"foreign\" is not in", &shard(2)]);
    }
    let model = with(|entries| entries.push(("foreign".to_owned(), "other.safetensors".to_owned())));
    model.refuses("ST_ERR_SHARD_MISSING", &[INDEX, "\"other.safetensors\""]);
}

/// Whatever the second entry says: a reader that takes the last one and one that takes the first must not differ.
#[test]
fn entry_twice() {
    for at in [0, ENTRY, ENTRY + 1, 6] {
        for number in 1..=3 {
            let model = with(|entries| entries.insert(at, ("2.weight".to_owned(), shard(number))));
            model.refuses("ST_ERR_INDEX_DUPLICATE", &[INDEX, "\"2.weight\""]);
        }
    }
    let model = with(|entries| entries.extend([("none".to_owned(), shard(1)), ("none".to_owned(), shard(2))]));
    model.refuses("ST_ERR_INDEX_DUPLICATE", &[INDEX, "\"none\""]);
}

#[test]
fn entry_twice_by_an_escape() {
    let model = Model::new();
    let text = index_text(&entries());
    let twice = text.replace(r#""2.weight""#, &format!(r#""2.w\u0065ight":"{}","2.weight""#, shard(2)));
    model.write_index_text(twice);
    model.refuses("ST_ERR_INDEX_DUPLICATE", &[INDEX, "\"2.weight\""]);
}

#[test]
fn shard_deleted() {
    for number in 1..=3 {
        let model = Model::new();
        fs::remove_file(model.path(&shard(number))).unwrap();
        model.refuses("ST_ERR_SHARD_MISSING", &[INDEX, &shard(number)]);
        // The same of a folder that goes by numbers.
        fs::remove_file(model.path(INDEX)).unwrap();
        let failure = open(&model.folder).unwrap_err();
        assert_eq!(failure.status, "ST_ERR_SHARD_MISSING");
        assert!(failure.message.contains(&shard(number)), "{failure:?}");
    }
}

#[test]
fn tensor_added_to_a_shard() {
    let model = Model::new();
    model.write(2, &[tensors_of(2), vec!["extra".to_owned()]].concat());
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "lacks tensor \"extra\"", &shard(2)]);
}

#[test]
fn tensor_taken_out_of_a_shard() {
    let model = Model::new();
    model.write(2, &["2.bias".to_owned()]);
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "tensor \"2.weight\" is not in", &shard(2)]);
    model.write(2, &[]);
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "is not in", &shard(2)]);
}

#[test]
fn name_in_two_shards() {
    for has_index in [true, false] {
        let model = Model::new();
        model.write(3, &[tensors_of(3), vec!["1.weight".to_owned()]].concat());
        if has_index {
            model.refuses("ST_ERR_DUPLICATE_NAME", &["tensor \"1.weight\"", &shard(1), &shard(3)]);
        } else {
            fs::remove_file(model.path(INDEX)).unwrap();
            let failure = open(&model.folder).unwrap_err();
            assert_eq!(failure.status, "ST_ERR_DUPLICATE_NAME");
            for named in ["\"1.weight\"", &shard(1), &shard(3)] {
                assert!(failure.message.contains(named), "{failure:?}");
            }
        }
    }
}

#[test]
fn shards_swapped() {
    let model = Model::new();
    model.write(1, &tensors_of(2));
    model.write(2, &tensors_of(1));
    model.refuses("ST_ERR_INDEX_MISMATCH", &[INDEX, "tensor \"1.bias\" is in", &shard(2)]);
}

#[test]
fn shard_damaged() {
    let sound = file_of(&tensors_of(2));
    let damaged: [(&str, Vec<u8>); 6] = [
        ("ST_ERR_HEADER_TOO_SMALL", vec![]),
        ("ST_ERR_HEADER_LENGTH", sound[..20].to_vec()),
        ("ST_ERR_TRUNCATED", sound[..sound.len() - 1].to_vec()),
        ("ST_ERR_TRAILING_BYTES", [&sound[..], b"x"].concat()),
        ("ST_ERR_HEADER_UTF8", [&sound[..10], &[0xff; 1], &sound[11..]].concat()),
        ("ST_ERR_HEADER_JSON", [&sound[..8], b"x", &sound[9..]].concat()),
    ];
    for (status, file) in damaged {
        let model = Model::new();
        fs::write(model.path(&shard(2)), file).unwrap();
        model.refuses(status, &[&shard(2)]);
        assert!(!model.open().unwrap_err().message.contains(&shard(1)));
    }
}

#[test]
fn index_that_is_none() {
    let sound = index_text(&entries());
    let map = &sound[sound.find("\"weight_map\"").unwrap()..sound.len() - 1];
    let nested = format!("{{\"x\":{}{},{map}}}", "[".repeat(200), "]".repeat(200));
    let texts: &[(&str, Vec<u8>)] = &[
        ("ST_ERR_INDEX_JSON", b"".into()),
        ("ST_ERR_INDEX_JSON", b"PK\x03\x04".into()),
        ("ST_ERR_INDEX_JSON", [b"\xef\xbb\xbf", sound.as_bytes()].concat()),
        ("ST_ERR_INDEX_JSON", nested.into()),
        ("ST_ERR_INDEX_JSON", "{\"x\":".repeat(1 << 20).into()),
        ("ST_ERR_INDEX_JSON", format!("{sound}{sound}").into()),
        ("ST_ERR_INDEX_UTF8", sound.replace("2.weight", "2.w\u{fc}").bytes().filter(|b| *b != 0xc3).collect()),
        ("ST_ERR_INDEX_UTF8", sound.encode_utf16().flat_map(u16::to_be_bytes).chain([0xff]).collect()),
        ("ST_ERR_INDEX_STRUCTURE", b"{}".into()),
        ("ST_ERR_INDEX_STRUCTURE", b"[]".into()),
        ("ST_ERR_INDEX_STRUCTURE", b"{\"weight_map\":{}}".into()),
        ("ST_ERR_INDEX_STRUCTURE", b"{\"weight_map\":[]}".into()),
        ("ST_ERR_INDEX_STRUCTURE", sound.replace("weight_map", "Weight_map").into()),
        ("ST_ERR_INDEX_STRUCTURE", sound.replace(&format!("\"{}\"", shard(3)), "3").into()),
        ("ST_ERR_INDEX_DUPLICATE", format!("{},{map}}}", &sound[..sound.len() - 1]).into()),
    ];
    for (status, text) in texts {
        let model = Model::new();
        model.write_index_text(text);
        model.refuses(status, &[INDEX]);
    }
}

#[test]
fn index_cut_off_anywhere() {
    let (model, sound) = (Model::new(), index_text(&entries()));
    for len in 0..sound.len() {
        model.write_index_text(&sound[..len]);
        assert_eq!(open(&model.path(INDEX)).unwrap_err().status, "ST_ERR_INDEX_JSON", "{}", &sound[..len]);
    }
}

/// No flipped bit makes another checkpoint of it: it opens as what it was, or not at all.
#[test]
fn index_with_any_bit_flipped() {
    let (model, sound) = (Model::new(), index_text(&entries()));
    for position in 0..sound.len() {
        for bit in 0..8 {
            let mut text = sound.clone().into_bytes();
            text[position] ^= 1 << bit;
            model.write_index_text(&text);
            let text = String::from_utf8_lossy(&text).into_owned();
            match safetensors_lazy::Checkpoint::open(model.path(INDEX), Default::default()) {
                Ok(checkpoint) => {
                    let in_metadata = position < sound.find("weight_map").unwrap();
                    assert!(in_metadata && checkpoint.len() == 6 && checkpoint.shard_len() == 3, "{text}");
                }
                Err(_) => {
                    let status = open(&model.path(INDEX)).unwrap_err().status;
                    assert!(
                        status.starts_with("ST_ERR_INDEX_") || status.starts_with("ST_ERR_SHARD_"),
                        "{status} {text}"
                    );
                }
            }
        }
    }
}

#[test]
fn index_too_large() {
    let model = Model::new();
    let index = File::options().write(true).open(model.path(INDEX)).unwrap();
    // Sparse: there is nothing to read.
    for len in [100_000_001, 1 << 40] {
        if index.set_len(len).is_err() {
            eprintln!("skipped: no sparse file of {len} bytes here");
            continue;
        }
        model.refuses("ST_ERR_INDEX_TOO_LARGE", &[INDEX, &len.to_string()]);
    }
    index.set_len(100_000_000).unwrap();
    model.refuses("ST_ERR_INDEX_JSON", &[INDEX]);
}
