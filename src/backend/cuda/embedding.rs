//! The arguments of kernels that read rows of the embedding.

use super::MAX_ROW_SEGMENTS;
use super::products::{MatrixArgument, NormArgument};
use crate::backend::phases::EmbeddingInput;
use crate::tensor::Matrix;
use bytemuck::NoUninit;

/// `Embedding` of `kernels/embedding.cuh`.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct EmbeddingArgument {
    segments: [MatrixArgument; MAX_ROW_SEGMENTS],
    given: MatrixArgument,
    norm: NormArgument,
    num_segments: u32,
    padding: u32,
}

impl EmbeddingArgument {
    /// Without an embedding there are no segments.
    pub fn of(embedding: Option<&EmbeddingInput<'_>>) -> Self {
        let segments = embedding.map_or(&[][..], |embedding| embedding.table.segments);
        Self {
            segments: segment_arguments(segments),
            given: MatrixArgument::of(
                embedding.and_then(|embedding| embedding.embeddings.as_ref()),
            ),
            norm: embedding.and_then(|embedding| embedding.norm.as_ref()).into(),
            num_segments: segments.len() as u32,
            padding: 0,
        }
    }
}

/// The pieces of a table, of which loading lets no more through than the arguments hold.
pub fn segment_arguments(segments: &[Matrix]) -> [MatrixArgument; MAX_ROW_SEGMENTS] {
    std::array::from_fn(|index| MatrixArgument::of(segments.get(index)))
}
