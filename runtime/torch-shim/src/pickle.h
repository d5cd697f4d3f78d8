// What libtorch takes an archive's word for: looked at before it reads the archive.
//
// Its zip reader checks no checksum and its unpickler believes every number, so that one wrong byte makes it take gigabytes, or
// hand out memory behind a tensor's data. What is checked here: texts lie within their pickle, places in the memo are as many as
// there can be, and each storage is as long as its record.
#pragma once

namespace caffe2::serialize {
class PyTorchStreamReader;
}

namespace shim {

// Throws a c10::Error that names the record and what is wrong with it.
void check_pickles(caffe2::serialize::PyTorchStreamReader &reader);

}  // namespace shim
