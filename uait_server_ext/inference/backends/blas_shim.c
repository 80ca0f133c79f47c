/* Standard CBLAS names over OpenBLAS as PyPI's scipy-openblas32 exports it (prefix scipy_).
 *
 * MLX on a CPU calls only these three. It asks for a matrix product even where one factor is a
 * single row, which is every step of generation; OpenBLAS would first repack the whole weight
 * matrix for it. Those go to the matrix-vector routine, which reads the weights once.
 */

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

void scipy_cblas_sgemm(int, int, int, int, int, int, float, const float *, int, const float *, int,
                       float, float *, int);
void scipy_cblas_dgemm(int, int, int, int, int, int, double, const double *, int, const double *,
                       int, double, double *, int);
void scipy_cblas_cgemm(int, int, int, int, int, int, const void *, const void *, int, const void *,
                       int, const void *, void *, int);
void scipy_cblas_sgemv(int, int, int, int, float, const float *, int, const float *, int, float,
                       float *, int);

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
  if (order == ROW_MAJOR && m == 1 && trans_a == NO_TRANS && trans_b == TRANS) {
    scipy_cblas_sgemv(order, NO_TRANS, n, k, alpha, b, ldb, a, 1, beta, c, 1);
  } else if (order == ROW_MAJOR && m == 1 && trans_a == NO_TRANS && trans_b == NO_TRANS) {
    scipy_cblas_sgemv(order, TRANS, k, n, alpha, b, ldb, a, 1, beta, c, 1);
  } else {
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
}

void cblas_dgemm(int order, int trans_a, int trans_b, int m, int n, int k, double alpha,
                 const double *a, int lda, const double *b, int ldb, double beta, double *c,
                 int ldc) {
  scipy_cblas_dgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void cblas_cgemm(int order, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                 const void *a, int lda, const void *b, int ldb, const void *beta, void *c,
                 int ldc) {
  scipy_cblas_cgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
