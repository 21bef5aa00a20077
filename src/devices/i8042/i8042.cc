// Placeholder until the device lands.
