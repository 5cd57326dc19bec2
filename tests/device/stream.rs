//! Streams of the host, and graphs that it captures on them.

use super::{Device, driver};
use cudarc::driver::sys::{
    self, CUgraphExec, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use std::ffi::c_void;
use std::ptr::null_mut;

/// A stream of its own on CUDA, which does not wait for the legacy default stream; NULL on the CPU.
#[derive(Debug)]
pub struct Stream(CUstream);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// In the primary context.
    pub fn on(device: Device) -> Self {
        Self::in_context(device, null_mut())
    }

    /// In a CUcontext; NULL is the primary one.
    pub fn in_context(device: Device, context: *mut c_void) -> Self {
        let mut stream = null_mut();
        if device == Device::Cuda {
            let before = driver::current();
            let context = if context.is_null() { driver::primary() } else { context.cast() };
            driver::set_current(context);
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: a context is current; `stream` is a place for a handle.
            driver::check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) });
            driver::set_current(before);
        }
        Self(stream)
    }

    /// What calls get.
    pub fn handle(&self) -> *mut c_void {
        self.0.cast()
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) {
        if !self.0.is_null() {
            driver::enter();
            // SAFETY: a live stream.
            driver::check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) });
        }
    }

    /// Lets what is enqueued here from now on begin when all that `other` has now is done.
    pub fn wait_for(&self, other: &Self) {
        driver::enter();
        let mut event = null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a context is current; live streams; the driver keeps the event while it is needed.
        unsafe {
            driver::check("cuEventCreate", sys::cuEventCreate(&mut event, flags));
            driver::check("cuEventRecord", sys::cuEventRecord(event, other.0));
            driver::check("cuStreamWaitEvent", sys::cuStreamWaitEvent(self.0, event, 0));
            driver::check("cuEventDestroy", sys::cuEventDestroy_v2(event));
        }
    }

    /// Waits until all work is done or has failed.
    pub fn settle(&self) {
        if !self.0.is_null() {
            driver::enter();
            // SAFETY: a live stream.
            let _ = unsafe { sys::cuStreamSynchronize(self.0) };
        }
    }

    /// Records what `work` enqueues, instead of doing it. `work` must not allocate buffers, as the
    /// driver forbids that to a thread that captures.
    pub fn capture(&self, work: impl FnOnce()) -> Graph {
        self.begin_capture();
        work();
        self.end_capture()
    }

    pub fn begin_capture(&self) {
        driver::enter();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.0, mode) };
        driver::check("cuStreamBeginCapture", result);
    }

    /// Whether a capture is on and has not been spoilt.
    pub fn is_capturing(&self) -> bool {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: a live stream, and a place for the status.
        let result = unsafe { sys::cuStreamIsCapturing(self.0, &mut status) };
        driver::check("cuStreamIsCapturing", result);
        status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
    }

    pub fn end_capture(&self) -> Graph {
        let (mut graph, mut executable, mut launches) = (null_mut(), null_mut(), 0);
        // SAFETY: a live stream that captures; places for handles; the graph is not needed any more
        // once it is instantiated.
        unsafe {
            driver::check("cuStreamEndCapture", sys::cuStreamEndCapture(self.0, &mut graph));
            let result = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            driver::check("cuGraphInstantiate", result);
            let result = sys::cuGraphGetNodes(graph, null_mut(), &mut launches);
            driver::check("cuGraphGetNodes", result);
            driver::check("cuGraphDestroy", sys::cuGraphDestroy(graph));
        }
        Graph { executable, launches }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.0.is_null() {
            driver::enter();
            // SAFETY: the handle is given up here and nowhere else. After a fault of the device
            // every call fails, this one too.
            unsafe { sys::cuStreamDestroy_v2(self.0) };
        }
    }
}

/// Recorded work.
#[derive(Debug)]
pub struct Graph {
    executable: CUgraphExec,
    /// What is recorded, kernels and all else.
    pub launches: usize,
}

impl Graph {
    /// Enqueues the work again.
    pub fn launch(&self, stream: &Stream) {
        driver::enter();
        // SAFETY: live handles; what the work uses is kept by the test until the stream is done.
        driver::check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.executable, stream.0) });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        driver::enter();
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
