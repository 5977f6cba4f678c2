-- Take one request out of a bucket that holds a minute's and fills evenly.
-- KEYS[1] the bucket. ARGV: most, window in seconds. Gives whether there was one, how many are left,
-- and the seconds until it is full, or until the next request where there was none.
local most, window_us = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000000
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local known = redis.call('HMGET', KEYS[1], 'left', 'at_us')
local left = most
-- The clock may have been set back.
local passed_us = known[1] and math.max(0, now_us - known[2])
if known[1] then left = math.min(most, known[1] + passed_us * most / window_us) end
local is_taken = left >= 1
if is_taken then left = left - 1 end
redis.call('HSET', KEYS[1], 'left', string.format('%.6f', left), 'at_us', string.format('%.0f', now_us))
redis.call('EXPIRE', KEYS[1], ARGV[2])
local missing = is_taken and most - left or 1 - left
return { is_taken and 1 or 0, math.floor(left), math.ceil(missing * window_us / most / 1000000) }
