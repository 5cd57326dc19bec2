//! Where keys and values are: the twin of `kernels/paging.cuh`.

use super::products::MatrixArgument;
use crate::backend::phases::Paging;
use bytemuck::NoUninit;

/// `Paging` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
pub struct PagingArgument {
    pages: MatrixArgument,
    own_pages: MatrixArgument,
    table: u64,
    page_row: u64,
    page_size: u32,
    num_kv_heads: u32,
    layer: u32,
    head_dim: u32,
    block_len: u32,
    pages_per_block: u32,
    paths: u64,
    path_stride: u32,
    path_len: u32,
}

impl From<&Paging> for PagingArgument {
    fn from(paging: &Paging) -> Self {
        let page_size = paging.pool.page_size;
        let (block, tree) = (paging.block(), paging.tree());
        Self {
            pages: (&paging.pool.pages).into(),
            own_pages: MatrixArgument::of(paging.own_pages().as_ref()),
            table: paging.table.address(),
            page_row: paging.page_row.address(),
            page_size: page_size as u32,
            num_kv_heads: paging.pool.num_kv_heads as u32,
            layer: paging.layer as u32,
            head_dim: paging.pool.head_dim as u32,
            block_len: block.map_or(0, |block| block.len as u32),
            pages_per_block: block.map_or(0, |block| block.pages_per_block(page_size) as u32),
            paths: tree.map_or(0, |tree| tree.paths.address()),
            path_stride: tree.map_or(0, |tree| tree.stride as u32),
            path_len: tree.map_or(0, |tree| tree.depth as u32),
        }
    }
}
