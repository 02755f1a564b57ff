"""A numba kernel that computes two views of a grey image on a CPU, run by DALI as one operator.

A view is A_y · X · A_xᵀ followed by brightness, contrast and normalisation. X [H, W] is the crop. A_y = G_y · R_y
[size, H] and A_x = G_x · R_x [size, W] are sparse: R contains the taps of an antialiased bilinear resize, G those of a
Gaussian blur with reflection padding. A flip reverses the order of R_x's rows. The kernel never builds these matrices:

1. taps.py computes the taps: for each row of R its first input pixel and a few weights, and one row of G.
2. kernel.py works on strips of 16 output rows. It converts the input rows of a strip to float32, sums them to the 16
   rows of R_y · X, a chunk of columns at a time, and transposes them to [W, 16].
3. The same sum over rows now resizes the other axis to [size, 16], and a blur along it follows. Transposed back, the
   strip is 16 rows of R_y · X · A_xᵀ.
4. After the last strip it blurs along the other axis.
5. It applies the brightness and computes the mean. Then it applies contrast and normalisation and writes the view.

workspaces.py keeps the memory for the intermediate results, one workspace per thread; a strip fits into the L2 cache.
simd.py contains the inner loops as LLVM vector code: numba itself does not keep the sums of several vectors in
registers, nor transpose there. dali_operator.py wraps the kernel for DALI.
"""
