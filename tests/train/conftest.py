"""Eight virtual devices: the sharding tests need them, and the rest shows that it does not mind."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
