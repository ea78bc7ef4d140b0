"""Eight virtual devices: the sharding tests need them, and all other tests work with them."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
