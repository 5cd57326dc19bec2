// cp.async: copies that land only when the thread waits for them, so that a missing wait shows.
#pragma once

namespace simt {

struct Thread;

// Forgets the copies of a thread that has ended.
void discard_copies(Thread &thread);

}  // namespace simt
