//! Bytes as the text of a header: our verdict is that of the reference implementation, and the two readers of headers agree.

use crate::reference::{check, Verdict};
use safetensors_lazy::format::{Header, NameTable};

/// More data than this is not made up for a header that describes it.
const MOST_DATA: u64 = 1 << 16;

pub fn run(text: &[u8]) {
    // With as much data as the header describes, so that what is wrong is the header and not the length of the file.
    let parsed = Header::parse(text).ok().filter(|header| NameTable::new(header).is_ok());
    let data_len = parsed.as_ref().map_or(0, Header::data_len);
    let is_whole = data_len <= MOST_DATA;
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text);
    if is_whole {
        file.resize(file.len() + data_len as usize, 0xa5);
    }
    let verdict = check(&file).unwrap_or_else(|difference| panic!("{difference}\n{}", text.escape_ascii()));
    assert_eq!(verdict == Verdict::Accepted, parsed.is_some() && is_whole, "{}", text.escape_ascii());
}
