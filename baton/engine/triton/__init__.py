"""Kernels in Triton for GPUs, each beside the function that launches it.

Under TRITON_INTERPRET=1 they run on a CPU, slowly: that is how they are tested where there is no GPU.
"""
