//! Reading a block through the page cache, or out of memory.

use super::options::Engine;
use super::segment::{Block, Piece};
use super::shared::{Outcome, Shared};
use crate::error::Error;
use crate::storage::{Part, Sink, Storage};

/// Reads all pieces of a block, each to where it belongs.
pub(super) fn read(shared: &Shared, storage: &Storage, block: &Block, engine: Engine, sink: &mut Sink) -> Outcome {
    let (mut failures, mut bytes_read, mut number) = (Vec::new(), 0, 0);
    for pieces in block.pieces.chunk_by(|_, next| next.joined) {
        let Some(first) = pieces.first() else { continue };
        let parts = parts(pieces);
        // SAFETY: pieces are destinations and staging memory that belongs to nobody else until they are delivered.
        let is_read = !shared.has_ended() && unsafe { storage.read_parts(&parts, first.offset, sink) }.is_ok();
        if is_read {
            bytes_read += parts.iter().map(|part| part.len as u64).sum::<u64>();
        } else {
            // Which of them it is that cannot be read is for each to find out.
            for (piece, number) in pieces.iter().zip(number..) {
                match read_piece(shared, storage, piece) {
                    Ok(()) => bytes_read += piece.len,
                    Err(error) => failures.push((number, error)),
                }
            }
        }
        number += pieces.len();
    }
    Outcome { engine, rescued: Vec::new(), failures, bytes_read }
}

/// Reads one piece by itself.
pub(super) fn read_piece(shared: &Shared, storage: &Storage, piece: &Piece) -> Result<(), Error> {
    if shared.has_ended() {
        return Err(Error::Cancelled);
    }
    // SAFETY: as above; any bytes are uninitialised ones.
    let dst = unsafe { std::slice::from_raw_parts_mut(piece.to.as_ptr().cast(), piece.len as usize) };
    storage.read_exact_at(dst, piece.offset).map_err(|source| shared.read_error(piece.delivery, source))
}

/// Pieces, and what lies between them.
fn parts(pieces: &[Piece]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(2 * pieces.len());
    let mut at = pieces.first().map_or(0, |first| first.offset);
    for piece in pieces {
        if piece.offset > at {
            parts.push(Part { to: None, len: (piece.offset - at) as usize });
        }
        parts.push(Part { to: Some(piece.to), len: piece.len as usize });
        at = piece.end();
    }
    parts
}
