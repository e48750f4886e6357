#ifndef ACL_HPP
#define ACL_HPP

#include "device.hpp"

// An Ascend NPU, by the ACL runtime of CANN. runtime: its path, or "" to look for it.
std::unique_ptr<Device> make_acl(int number, const std::string &runtime);

#endif
