// x out rows
#map = affine_map<(d0) -> (d0)>
module {
  func.func @sample(%arg0: memref<?xi8>, %arg1: memref<?xi8>, %arg2: memref<?xf16> {tt.divisibility = 16 : i32}, %arg3: memref<?xf32> {tt.tensor_kind = 1 : i32}, %arg4: i32, %arg5: i32, %arg6: i32, %arg7: i32, %arg8: i32, %arg9: i32, %arg10: i32) attributes {mix_mode = "mix"} {
    %c-2_i32 = arith.constant -2 : i32
    %c0 = arith.constant 0 : index
    %cst = arith.constant 0.000000e+00 : f32
    %cst_0 = arith.constant 0xFF800000 : f32
    %c32_i32 = arith.constant 32 : i32
    %0 = tensor.empty() : tensor<16x32xf32>
    %1 = linalg.fill ins(%cst : f32) outs(%0 : tensor<16x32xf32>) -> tensor<16x32xf32>
    %2 = tensor.empty() : tensor<16xf32>
    %3 = linalg.fill ins(%cst_0 : f32) outs(%2 : tensor<16xf32>) -> tensor<16xf32>
    %4 = tensor.empty() : tensor<16x16xf32>
    %5 = linalg.fill ins(%cst : f32) outs(%4 : tensor<16x16xf32>) -> tensor<16x16xf32>
    %6 = arith.muli %arg4, %c32_i32 : i32
    %reinterpret_cast_2 = memref.reinterpret_cast %arg2 to offset: [%c0], sizes: [16, 16], strides: [16, 1] : memref<?xf16> to memref<16x16xf16, strided<[16, 1], offset: ?>>
    %alloc_3 = memref.alloc() : memref<16x16xf16>
    memref.copy %reinterpret_cast_2, %alloc_3 : memref<16x16xf16, strided<[16, 1], offset: ?>> to memref<16x16xf16>
    %12 = bufferization.to_tensor %alloc_3 restrict writable : memref<16x16xf16>
    %7:2 = scf.for %arg11 = %arg8 to %6 step %c32_i32 iter_args(%arg12 = %3, %arg13 = %5) -> (tensor<16xf32>, tensor<16x16xf32>)  : i32 {
      %8 = arith.index_cast %arg11 : i32 to index
      %reinterpret_cast = memref.reinterpret_cast %arg2 to offset: [%8], sizes: [32, 16], strides: [16, 1] : memref<?xf16> to memref<32x16xf16, strided<[16, 1], offset: ?>>
      %alloc = memref.alloc() : memref<32x16xf16>
      %9 = arith.cmpi slt, %arg11, %c32_i32 : i32
      scf.if %9 {
        memref.copy %reinterpret_cast, %alloc : memref<32x16xf16, strided<[16, 1], offset: ?>> to memref<32x16xf16>
      } {hivm.unlikely_condition}
      %10 = bufferization.to_tensor %alloc restrict writable : memref<32x16xf16>
      %11 = tensor.empty() : tensor<16x32xf16>
      %transposed = linalg.transpose ins(%10 : tensor<32x16xf16>) outs(%11 : tensor<16x32xf16>) permutation = [1, 0] 
      %13 = linalg.matmul {input_precison = "ieee"} ins(%12, %transposed : tensor<16x16xf16>, tensor<16x32xf16>) outs(%1 : tensor<16x32xf32>) -> tensor<16x32xf32>
      %reduced = linalg.reduce ins(%13 : tensor<16x32xf32>) outs(%3 : tensor<16xf32>) dimensions = [1] 
        (%in: f32, %init: f32) {
          %20 = arith.maxnumf %in, %init : f32
          linalg.yield %20 : f32
        }
      %broadcasted = linalg.broadcast ins(%reduced : tensor<16xf32>) outs(%0 : tensor<16x32xf32>) dimensions = [1] 
      %14 = arith.subf %13, %broadcasted : tensor<16x32xf32>
      %15 = math.exp %14 : tensor<16x32xf32>
      %16 = arith.truncf %15 : tensor<16x32xf32> to tensor<16x32xf16>
      %17 = linalg.matmul {input_precison = "ieee"} ins(%16, %10 : tensor<16x32xf16>, tensor<32x16xf16>) outs(%arg13 : tensor<16x16xf32>) -> tensor<16x16xf32>
      scf.yield %reduced, %17 : tensor<16xf32>, tensor<16x16xf32>
    }
    %reinterpret_cast_1 = memref.reinterpret_cast %arg3 to offset: [%c0], sizes: [16, 16], strides: [16, 1] : memref<?xf32> to memref<16x16xf32, strided<[16, 1], offset: ?>>
    bufferization.materialize_in_destination %7#1 in writable %reinterpret_cast_1 : (tensor<16x16xf32>, memref<16x16xf32, strided<[16, 1], offset: ?>>) -> ()
    return
  }
}
