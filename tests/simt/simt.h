// The face of the simulator that g++ sees in place of nvcc's built-in declarations:
//
//     g++ -std=c++17 -ffp-contract=off -DSIMT -include tests/simt/simt.h -x c++ kernels/some.cu
//
// makes the host twin of a kernel file, in which every CUDA thread is a fiber. The runtime that the
// twin refers to is in the stand-in libcuda.so.1. The README beside this file tells the rest.
#pragma once

#include "face/abi.h"
#include "face/atomics.h"
#include "face/execution.h"
#include "face/intrinsics.h"
#include "face/registration.h"
#include "face/vectors.h"
#include "face/warp.h"
