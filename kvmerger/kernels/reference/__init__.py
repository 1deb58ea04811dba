"""What each kernel computes, in plain torch: the definition that faster kernels are held against, and the CPU's way."""
