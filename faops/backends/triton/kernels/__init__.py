"""The Triton kernels. Importing one imports triton; the rest of the backend only names them."""
