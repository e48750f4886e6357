//! Reading a block through the page cache, or out of memory.

use super::options::Engine;
use super::segment::{Block, Piece};
use super::shared::{Failures, Outcome, Shared};
use crate::error::Error;
use crate::storage::{Part, Scatter, Storage};

/// Reads all pieces of a block, each to where it belongs.
pub(super) fn read(
    shared: &Shared,
    storage: &Storage,
    block: &Block,
    engine: Engine,
    scatter: &mut Scatter,
) -> Outcome {
    let (mut failures, mut bytes_read, mut number) = (Failures::default(), 0, 0);
    for pieces in block.pieces.chunk_by(|_, next| next.joined) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { continue };
        // SAFETY: pieces are destinations and staging memory that belongs to nobody else until they are delivered.
        let is_read =
            !shared.has_ended() && unsafe { storage.read_parts(parts(pieces), first.offset, scatter) }.is_ok();
        if is_read {
            bytes_read += last.end() - first.offset;
        } else {
            // Which of them it is that cannot be read is for each to find out.
            for (piece, number) in pieces.iter().zip(number..) {
                match read_piece(shared, storage, piece) {
                    Ok(()) => bytes_read += piece.len,
                    Err(error) => failures.push(number, error),
                }
            }
        }
        number += pieces.len();
    }
    Outcome { engine, failures, bytes_read }
}

/// Reads one piece by itself.
pub(super) fn read_piece(shared: &Shared, storage: &Storage, piece: &Piece) -> Result<(), Error> {
    if shared.has_ended() {
        return Err(Error::Cancelled);
    }
    // SAFETY: as above; any bytes are uninitialised ones.
    let dst = unsafe { std::slice::from_raw_parts_mut(piece.to.as_ptr().cast(), piece.len as usize) };
    storage.read_exact_at(dst, piece.offset).map_err(|source| shared.read_error(piece.request, source))
}

/// Pieces, and what lies between them.
fn parts(pieces: &[Piece]) -> impl Iterator<Item = Part> + '_ {
    let mut at = pieces.first().map_or(0, |first| first.offset);
    pieces.iter().flat_map(move |piece| {
        let gap = (piece.offset > at).then(|| Part { to: None, len: (piece.offset - at) as usize });
        at = piece.end();
        gap.into_iter().chain([Part { to: Some(piece.to), len: piece.len as usize }])
    })
}
