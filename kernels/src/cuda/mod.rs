//! The operations of [`Device`](crate::Device) on NVIDIA devices, by kernels of our own.

mod images;
