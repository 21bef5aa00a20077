// Why the one who answers at a control API did not do what was asked.
#pragma once

#include "api/http/http_client.h"
#include "base/error.h"

namespace mayfly::api {

// The error (kUnsupported) that an answer of another status than 200 or 204 is: its fault_message as it came,
// to be shown escaped or not at all.
Error refusal_of(const HttpAnswer& answer);

}  // namespace mayfly::api
